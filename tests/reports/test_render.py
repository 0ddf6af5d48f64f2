"""The whole page: complete, self-contained, safe, and made from a store."""

import re
import time
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.spec import Case, Measurement, Topology, Workload
from harness.store import Store
from reports.render import ReportError, render, write
from tests.reports import planted

VOID = {"meta", "link", "br", "input", "img", "path", "line", "rect", "circle"}
HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&{{7*7}}"


class Page(HTMLParser):
    """The tags and attributes of a page; fails if an element is closed that was not the last one opened."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()} closes another element"


def shown(html: str, topic: str) -> str:
    """The section of one topic."""
    return html.split(f'<section id="topic-{topic}"')[1].split("</section>")[0]


def test_the_page_is_well_formed(html: str) -> None:
    assert Page(html).open == []


def test_the_appendix_tells_what_the_margin_of_parity_rests_on() -> None:
    page = render([*planted.records(), planted.calibration()], planted.run())
    section = page.split('<section id="calibration">')[1].split("</section>")[0]
    for text in ("within 3.5 noise floors", "10 seeds", "avx2", "gradient slope", "321", "1.25", "37.9", "none seen"):
        assert text in section
    assert "topic-calibration" not in page


def test_every_case_and_every_verdict_appears(html: str) -> None:
    records = planted.records()
    for case in {record["case"] for record in records if record["case"]}:
        assert f'<th scope="row"><code>{case}</code></th>' in html
    for verdict in {record["verdict"] for record in records}:
        assert re.search(rf'class="v {verdict}"', html), verdict


def test_the_tally_counts_every_measurement_once(html: str) -> None:
    records = [record for record in planted.records() if record["measure"] not in ("card", "claim", "finding")]
    for verdict in ("pass", "fail", "error", "invalid", "inconclusive", "skipped"):
        count = sum(record["verdict"] == verdict for record in records)
        assert re.search(rf'<b>{count}</b> <span class="v {verdict}">', html), verdict


def test_nothing_is_fetched_from_anywhere(html: str) -> None:
    page = Page(html)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert name not in ("src", "srcset", "data", "action", "xlink:href", "ping"), (tag, name, value)
        if (tag, name) == ("a", "href"):  # followed by a reader, not fetched by the page
            assert value.startswith(("#", "https://github.com/")), value
        else:
            assert name.startswith("data-") or name in ("title", "aria-label") or "//" not in value, (tag, name, value)
    assert not re.search(r"url\(|@import|@font-face|fetch\(|XMLHttpRequest|import\(", html)


def test_links_lead_to_anchors_that_exist_once(html: str) -> None:
    page = Page(html)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = {value for _, name, value in page.attributes if name == "href"}
    assert {link[1:] for link in links if not link.startswith("https:")} <= set(ids)


def test_a_source_s_address_is_plain_text(html: str) -> None:
    assert "https://arxiv.org/abs/2006.15704" in html
    assert 'href="https://arxiv' not in html


def test_markup_in_names_is_shown_and_not_executed() -> None:
    records = planted.records()
    for record in records:
        for name in ("topic", "variant", "engine", "reason", "device", "workload", "unit"):
            record[name] = record[name] and HOSTILE
        record["detail"] = {
            key: HOSTILE if isinstance(value, str) else value for key, value in record["detail"].items()
        }
    records[0]["detail"] |= {"title": HOSTILE, "sources": [HOSTILE], "engines": [HOSTILE], "variants": {HOSTILE: {}}}
    parts = {HOSTILE: 4096}
    for record in records:
        if "parts" in record["detail"]:
            record["detail"] = record["detail"] | {"parts": parts}
    html = render(records, planted.run() | {"command": HOSTILE, "run": HOSTILE})
    page = Page(html)
    assert page.open == []
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert "{{7*7}}" in html  # neither evaluated nor lost
    assert any(unescape(text).startswith("<script>") for text in re.findall(r"<text [^>]*>([^<]*)</text>", html))
    assert any(HOSTILE in value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label"))


def test_a_failure_says_where_it_first_diverged(html: str) -> None:
    assert "first divergence: step 1, model.layers.0.self_attn.q_proj.weight, rank 3" in shown(html, "zero")


def test_an_error_shows_its_first_line_and_folds_the_rest(html: str) -> None:
    section = shown(html, "tensor_parallel")
    first = planted.TRACEBACK.splitlines()[0]
    assert f"<b>{first}</b>" in section
    assert re.search(
        r"<details><summary>Full message</summary><template><pre>[^<]*rank 0 waited in all_reduce #14", section
    )


def test_a_failure_that_a_finding_explains_stands_under_known_issues_with_a_link_to_it(html: str) -> None:
    section = shown(html, "data_parallel")
    known = section.split("<h3>Known issues</h3>")[1].split("<h3>")[0]
    link = '<a href="#wrong" data-go="deepspeed_boundary">deepspeed_boundary</a>'
    assert f"{link} the last &lt;micro-batch&gt; is dropped" in known
    assert "no_sync-deepspeed-dp4-fp32" in known
    assert "no_sync-deepspeed-dp4-fp32" not in section.split("<h3>Known issues</h3>")[0]


def test_a_fallback_is_said_in_words_and_marked_in_the_table(html: str) -> None:
    section = shown(html, "zero")
    assert "no fused optimizer on the CPU: the plain one was used" in section.split("<h3>Fallbacks</h3>")[1]
    assert "†</sup>" in section


def test_how_narrow_products_were_computed_is_said_in_the_header(html: str) -> None:
    note = "no bfloat16 instructions: matrix products are computed in float32 and rounded once"
    assert f"<dt>Products</dt><dd>{note}</dd>" in html


def test_the_shells_variables_stand_in_the_appendix(html: str) -> None:
    assert "<dt><code>ATEN_CPU_CAPABILITY</code></dt><dd>avx2</dd>" in html
    assert "<dt><code>CUDA_VISIBLE_DEVICES</code></dt><dd>(empty)</dd>" in html


def test_claims_show_what_was_published_what_was_measured_and_the_status(html: str) -> None:
    ledger = html.split('<section id="claims"')[1].split("</section>")[0]
    for status in ("reproduced", "contradicted", "formula only", "out of reach here"):
        assert f">{status}</span>" in ledger
    assert ledger.index("contradicted") < ledger.index("reproduced")
    assert "1.90\u202fGB" in ledger
    assert "1.88\u202fGB" in ledger


def test_it_follows_the_reader_s_theme_and_can_be_switched(html: str) -> None:
    assert "color-scheme: light dark" in html
    assert 'data-theme="dark"' in html
    assert '<button id="theme"' in html
    assert "@media print" in html


def test_it_is_small_and_quick() -> None:
    records = planted.records()
    started = time.process_time()
    html = render(records, planted.run())
    assert time.process_time() - started < 10
    assert len(html.encode()) < 3e6


def test_a_topic_s_title_can_be_given_from_outside() -> None:
    records = [record for record in planted.records() if record["topic"] == "preference"]
    html = render(records, planted.run(), {"preference": {"title": "Preference optimisation"}})
    assert "<h2>Preference optimisation <code>preference</code></h2>" in html
    assert "Rafailov et al. 2023, eq. 7" in html  # other fields remain the card's


def test_records_without_a_card_figures_or_details_still_make_a_page() -> None:
    records = [record for record in planted.records() if record["case"].startswith("zero1-torch")]
    for record in records:
        record |= {"value": None, "law": None, "bound": None, "detail": {}}
    html = render(records, {"run": "r", "command": "pytest"})
    assert Page(html).open == []
    assert "zero1-torch-dp4-bf16" in html


def test_without_records_it_says_what_to_do() -> None:
    with pytest.raises(ReportError, match=r"^run 'r7' has no records; run pytest suites/ again"):
        render([], {"run": "r7"})


def test_a_store_without_records_is_one_clear_line(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "empty.sqlite"))
    with pytest.raises(ReportError, match=r"^the store's latest run has no records: run pytest suites/ [^\n]+$"):
        write(store, None, tmp_path / "site")
    run = store.begin({}, "pytest suites/")
    with pytest.raises(ReportError, match=f"^run '{run}' has no records"):
        write(store, run, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_store_s_latest_run_becomes_index_html(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "some.sqlite"))
    case = Case("zero", "zero3", "deepspeed", Topology(dp=2), Workload())
    measurement = Measurement("parity", "gradient", 1.25, "× floor", "pass", "", bound=3.0, detail={"resolution": 1e-6})
    older = store.begin({"cpu": "one", "cores": 2, "packages": {"torch": "2.13"}}, "pytest suites/ --ranks 2")
    store.add(older, case, "cpu", [measurement.but(value=1.75)])
    store.add(store.begin({"cpu": "one", "cores": 2}, "pytest suites/"), case, "cpu", [measurement])
    path = write(store, None, tmp_path / "site")
    assert path == tmp_path / "site" / "index.html"
    assert "1.25×" in path.read_text(encoding="utf-8")
    old = write(store, older, tmp_path / "old", single_file=True).read_text(encoding="utf-8")
    assert "1.75×" in old
    assert "torch 2.13" in old
