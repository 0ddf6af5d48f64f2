"""The report opens with what is wrong today: the findings that the run stored, and the cases that show them."""

import json
import re
from pathlib import Path

import pytest

from harness import findings
from harness.session import finding_records
from harness.spec.finding import KINDS
from harness.store import Store
from reports.render import render
from tests.findings.examples import RECORD, SYMPTOM, read
from tests.reports import planted
from tests.reports.browser import ask, needs_chromium
from tests.reports.test_page import WIDTHS


@pytest.fixture
def section(html: str) -> str:
    return html.split('<section id="wrong">')[1].split("</section>")[0]


def test_it_comes_before_every_other_section_and_wrong_results_come_first(html: str, section: str) -> None:
    assert re.findall(r'<section id="([^"]+)"', html)[0] == "wrong"
    titles = (
        "Wrong results",
        "What costs memory, traffic, messages and time",
        "By design",
        "Not comparable",
        "Intended",
    )
    places = [section.index(title) for title in titles]
    assert places == sorted(places)


def test_costs_are_shown_and_what_is_no_fault_is_folded(section: str) -> None:
    unfolded = section.split("<summary>By design")[0]
    for kind in KINDS[:5]:
        assert ("deepspeed_boundary" if kind == KINDS[0] else f"deepspeed_{kind.replace(' ', '_')}") in unfolded
    for kind in KINDS[5:]:
        name = f"deepspeed_{kind.replace(' ', '_')}"
        assert name not in unfolded
        assert name in section


def test_a_finding_says_what_a_user_needs_to_know(section: str) -> None:
    first = section.split('<li class="finding wrong">')[1].split("</li>")[0]
    for expected in (
        "the last &lt;micro-batch&gt; is dropped outside its boundary",
        "A quarter of each batch is not learned from.",
        "deepspeed 0.18.2, since deepspeed 0.18; right in deepspeed 0.19.0",
        "silent",
        "by default",
        '<a href="https://github.com/deepspeedai/DeepSpeed/issues/1">deepspeedai/DeepSpeed#1</a>: names the cause',
        "plumbline findings deepspeed_boundary --script",
        '<a href="#topic-data_parallel" data-go="-no_sync-deepspeed-dp4-fp32]">no_sync-deepspeed-dp4-fp32</a>',
        "engine.py:1 compares with the wrong count.",
    ):
        assert expected in first


def test_silent_defaults_come_before_others_of_their_kind() -> None:
    records = planted.findings()
    loud = records[0] | {"quantity": "a_loud", "detail": records[0]["detail"] | {"silent": False}}
    rare = records[0] | {"quantity": "b_rare", "detail": records[0]["detail"] | {"default": False}}
    html = render([*planted.records(), loud, rare], planted.run())
    places = [html.index(f"<code>{name}</code>") for name in ("deepspeed_boundary", "b_rare", "a_loud")]
    assert places == sorted(places)


def test_what_the_runs_own_release_has_repaired_is_not_wrong_today() -> None:
    first, *others = planted.findings()
    repaired = first | {"quantity": "repaired_long_ago", "detail": first["detail"] | {"repaired": True}}
    assert "repaired_long_ago" not in render([*planted.records(), *others, repaired], planted.run())


def test_a_run_without_findings_has_no_such_section() -> None:
    records = [record for record in planted.records() if record["measure"] != "finding"]
    html = render(records, planted.run())
    assert 'id="wrong"' not in html
    assert "deepspeed_boundary" in html  # a failure still names its finding


def test_what_a_session_stores_is_what_the_report_shows(tmp_path: Path) -> None:
    folder = tmp_path / "findings"
    folder.mkdir()
    finding = read(RECORD + SYMPTOM, folder)
    store = Store.open(str(tmp_path / "store.db"))
    about, measurements = finding_records([finding])
    run = store.begin({}, "pytest suites/")
    store.add(run, about, "cpu", measurements)
    html = render([*planted.records(), *store.records(run)], planted.run())
    assert finding.title in html
    assert f'<a href="{finding.link}">' in html
    assert "topic-findings" not in html


def test_the_page_is_small_until_something_is_unfolded_with_all_findings_of_the_suites() -> None:
    _, measurements = finding_records(findings.read())
    about = planted.findings()[0]
    stored = [about | {"quantity": m.quantity, "detail": json.loads(json.dumps(m.detail))} for m in measurements]
    html = render([*planted.records(), *stored], planted.run())
    while (smaller := re.sub(r"<template>(?:(?!</?template>).)*</template>", "", html, flags=re.S)) != html:
        html = smaller
    assert len(html.encode()) < 1e6


@needs_chromium
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_of_it_is_wider_than_the_screen(width: int, html: str, tmp_path: Path) -> None:
    for found in ask(html, WIDTHS, tmp_path, width):
        assert found["page"] <= width
        assert found["over"] == []


@needs_chromium
def test_a_link_to_a_case_unfolds_it_in_its_topic_and_one_to_a_finding_goes_back(html: str, tmp_path: Path) -> None:
    script = """
    const hit = () => document.querySelector(".hit");
    document.querySelector('#wrong a[data-go="-no_sync-deepspeed-dp4-fp32]"]').click();
    const first = [hit().closest("section").id, hit().textContent];
    document.querySelector('#topic-data_parallel a[data-go="deepspeed_boundary"]').click();
    return [...first, hit().closest("section").id, hit().querySelector("code").textContent];
    """
    topic, text, back, name = ask(html, script, tmp_path)
    assert (topic, back, name) == ("topic-data_parallel", "wrong", "deepspeed_boundary")
    assert "-no_sync-deepspeed-dp4-fp32]" in text
