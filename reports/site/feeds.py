"""New wrong results and alarms, as a list on the index and as Atom and JSON feeds."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from harness.history import Alarm
from reports.site.case import change
from reports.site.names import case_page, run_page

MOST = 100  # entries of a feed
ATOM = "http://www.w3.org/2005/Atom"
NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML does not allow
TITLE = "Plumbline: new wrong results and alarms"


@dataclass(frozen=True)
class Item:
    """``page``: its address within the site; ``date``: in UTC, ISO 8601."""

    title: str
    text: str
    page: str
    date: str

    @property
    def id(self) -> str:
        return f"urn:sha256:{hashlib.sha256(f'{self.title} {self.date} {self.page}'.encode()).hexdigest()}"


def items(
    summaries: Sequence[Mapping[str, Any]], findings: Mapping[str, Mapping[str, Any]], alarms: Sequence[Alarm]
) -> list[Item]:
    """The newest first. ``summaries``: of the runs, the newest first."""
    found: list[Item] = []
    known: set[str] = set()
    for run in reversed(summaries):
        found += _findings(run, findings, known)
        groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
        for one in run["new"]:
            if not one["finding"]:
                groups.setdefault((one["topic"], one["engine"], one["measure"]), []).append(one)
        for (topic, engine, measure), some in groups.items():
            cases = list(dict.fromkeys(one["case"] for one in some))
            more = f" and {len(cases) - 1} other cases" if len(cases) > 1 else ""
            text = f"On {run['hardware']}: {some[0]['case']}{more}: {some[0]['quantity']}: {_line(some[0]['reason'])}"
            before = "passed before" if any(one["before"] == "pass" for one in some) else "not measured before"
            title = f"{measure} of {engine} in {topic} fails ({before})"
            page = case_page(cases[0]) if len(cases) == 1 else run_page(run["run"])
            found.append(Item(title, text, page, run["started"]))
    started = {run["run"]: run["started"] for run in summaries}
    for alarm in alarms:
        if alarm.improved or alarm.run not in started:
            continue
        series = alarm.series
        title = f"{series.measure} {series.quantity} of {series.case} changed for the worse"
        found.append(Item(title, change(alarm), case_page(series.case), started[alarm.run]))
    return sorted(found, key=lambda item: item.date, reverse=True)[:MOST]


def _findings(run: Mapping[str, Any], findings: Mapping[str, Mapping[str, Any]], known: set[str]) -> list[Item]:
    """Wrong results that no earlier run has shown."""
    found = []
    for name in run["shown"]:
        about = findings.get(name)
        if name not in known and about and about["kind"] == "wrong result":
            found.append(Item(about["title"], about["consequence"], f"findings/{name}.html", run["started"]))
        known.add(name)
    return found


def _line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason was recorded")
    return line if len(line) <= 300 else f"{line[:300]} …"


def atom(entries: Sequence[Item], url: str, updated: str) -> bytes:
    """``url``: the address of the site, with a slash at its end; empty for relative links."""
    feed = ElementTree.Element("feed", {"xmlns": ATOM, "xml:lang": "en"})
    _add(feed, "title", TITLE)
    _add(feed, "id", url or "urn:plumbline:site")
    _add(feed, "updated", updated)
    ElementTree.SubElement(feed, "link", {"rel": "self", "href": f"{url}feed.xml"})
    ElementTree.SubElement(feed, "link", {"rel": "alternate", "type": "text/html", "href": f"{url}index.html"})
    _add(ElementTree.SubElement(feed, "author"), "name", "Plumbline")
    for item in entries:
        entry = ElementTree.SubElement(feed, "entry")
        _add(entry, "title", item.title)
        _add(entry, "id", item.id)
        _add(entry, "updated", item.date)
        ElementTree.SubElement(entry, "link", {"rel": "alternate", "href": f"{url}{item.page}"})
        _add(entry, "summary", item.text)
    ElementTree.indent(feed)
    text: bytes = ElementTree.tostring(feed, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def feed(entries: Sequence[Item], url: str) -> bytes:
    """A JSON feed, version 1.1."""
    shown = {
        "version": "https://jsonfeed.org/version/1.1",
        "title": TITLE,
        **({"home_page_url": f"{url}index.html", "feed_url": f"{url}feed.json"} if url else {}),
        "items": [
            {
                "id": item.id,
                "url": f"{url}{item.page}",
                "title": item.title,
                "content_text": item.text,
                "date_published": item.date,
            }
            for item in entries
        ],
    }
    return (json.dumps(shown, indent=1, ensure_ascii=False) + "\n").encode()


def _add(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = NOT_XML.sub("", text)
