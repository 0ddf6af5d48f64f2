"""The feeds of a site."""

import json
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

from harness.history import Alarm, Series
from harness.store import Store
from reports.site import feeds, publish
from tests.site import synthetic
from tests.site.conftest import SOME

NAME = "{http://www.w3.org/2005/Atom}"


def test_the_atom_feed_has_what_the_standard_requires(site: Path) -> None:
    feed = ElementTree.parse(site / "feed.xml").getroot()
    assert feed.tag == f"{NAME}feed"
    for place in (feed, *feed.findall(f"{NAME}entry")):
        for name in ("id", "title", "updated"):
            assert place.findtext(f"{NAME}{name}")
        assert datetime.fromisoformat(place.findtext(f"{NAME}updated") or "").tzinfo
    ids = [entry.findtext(f"{NAME}id") for entry in feed.findall(f"{NAME}entry")]
    assert len(ids) == len(set(ids))
    assert feed.findtext(f"{NAME}author/{NAME}name")
    for link in feed.iter(f"{NAME}link"):
        assert (site / link.attrib["href"]).is_file()


def test_the_feeds_tell_of_the_new_wrong_result_and_of_the_unexplained_failure_alone(site: Path) -> None:
    found = json.loads((site / "feed.json").read_text())
    assert found["version"] == "https://jsonfeed.org/version/1.1"
    titles = [item["title"] for item in found["items"]]
    assert sorted(titles) == ["Gradients are <averaged> twice", "parity of reference in zero fails (passed before)"]
    assert all(item["id"] and item["content_text"] and (site / item["url"]).is_file() for item in found["items"])


def test_a_failure_that_stays_is_not_new_again(site: Path, store: Store) -> None:
    before = json.loads((site / "feed.json").read_text())["items"]
    failing = {SOME[1].id: "planted_average", SOME[2].id: ""}
    synthetic.night(store, 4, SOME[:3], synthetic.environment(torch="2.14.1"), failing=failing)
    publish(store, site)
    assert json.loads((site / "feed.json").read_text())["items"] == before


def test_links_of_the_feeds_are_absolute_where_the_address_is_known(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "site", url="https://example.org/plumbline/")
    found = json.loads((tmp_path / "site" / "feed.json").read_text())
    assert all(item["url"].startswith("https://example.org/plumbline/") for item in found["items"])
    assert found["home_page_url"] == "https://example.org/plumbline/index.html"


def test_an_alarm_for_the_worse_is_news_and_one_for_the_better_is_not() -> None:
    series = Series("a-case", "throughput", "step_time", "s", "lower", "machine")
    worse = Alarm(series, "r1", 0.010, 0.011, False, 1e-4, {"torch": ("2.13.0", "2.14.1")})
    better = Alarm(series, "r1", 0.010, 0.009, True, 1e-4)
    run = {"run": "r1", "started": "2026-11-01T00:00:00+00:00", "new": [], "shown": {}}
    (item,) = feeds.items([run], {}, [worse, better])
    assert "+10 %" in item.text
    assert "torch 2.13.0 → 2.14.1" in item.text
    assert item.page == "cases/a-case.html"


def test_control_characters_do_not_break_the_feed() -> None:
    content = feeds.atom([feeds.Item("a\x1b[0m", "\x00b", "p.html", "2026-11-01T00:00:00+00:00")], "", feeds_date())
    assert ElementTree.fromstring(content).findtext(f"{NAME}entry/{NAME}title") == "a[0m"


def feeds_date() -> str:
    return "2026-11-01T00:00:00+00:00"
