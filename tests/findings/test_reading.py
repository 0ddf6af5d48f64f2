"""Findings are data that is parsed strictly."""

import datetime
import re
from pathlib import Path

import pytest

from harness import findings
from harness.spec.finding import KINDS
from tests.findings.examples import RECORD, SYMPTOM, read


def test_a_finding_is_named_as_its_file_and_has_defaults_for_what_is_not_known(tmp_path: Path) -> None:
    found = read(RECORD + SYMPTOM, tmp_path)
    assert (found.id, found.engine, found.silent, found.seen) == (
        "deepspeed_copy",
        "deepspeed",
        True,
        ("deepspeed 0.19.8",),
    )
    assert (found.right, found.since, found.needs) == ((), "", ())
    assert found.symptoms[0].band == (1.2, 1.4)
    assert found.link == "https://github.com/deepspeedai/DeepSpeed/issues/7700"


def test_findings_come_in_the_order_of_their_kinds(tmp_path: Path) -> None:
    for number, kind in enumerate(reversed(KINDS)):
        (tmp_path / f"a{number}.toml").write_text(RECORD.replace("more memory", kind))
    assert [finding.kind for finding in findings.read(tmp_path)] == list(KINDS)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("engine =", "engines =", r"unknown field 'engines'; did you mean 'engine'\?"),
        ('title = "ZeRO-3 keeps a second copy of the weights"', "", "the field 'title' is missing"),
        ('kind = "more memory"', 'kind = "bad"', "kind 'bad' is none of wrong result, more memory, "),
        ("silent = true", 'silent = "yes"', "silent must be true or false, not 'yes'"),
        ('seen = ["deepspeed 0.19.8"]', 'seen = "deepspeed 0.19.8"', "seen must be a list of texts"),
        ('seen = ["deepspeed 0.19.8"]', "seen = []", "seen is empty"),
        ("review = 2999-01-01", 'review = "later"', "review must be a date, as 2027-03-31, not 'later'"),
        ("deepspeedai/DeepSpeed#7700", "7700", "issue '7700' is not written as owner/name#number"),
        ("band = [1.2, 1.4]", "", "symptom 1 has neither a band nor what its reason says"),
        ("band = [1.2, 1.4]", "band = [1.4, 1.2]", "symptom 1: band must be two numbers, the smaller first"),
        ("band = [1.2, 1.4]", "band = [1.4]", "symptom 1: band must be two numbers, the smaller first"),
        ('quantity = "peak"', 'quantity = "p*k"', r"symptom 1: quantity 'p\*k' is a pattern; name one quantity"),
        ("band = [1.2, 1.4]", 'says = "x"\ndevice = "gpu"', "symptom 1: device 'gpu' is not cpu or cuda"),
        ("kind =", "kind", "Expected '='"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(right: str, wrong: str, message: str, tmp_path: Path) -> None:
    text = RECORD + SYMPTOM
    assert right in text
    with pytest.raises(ValueError, match=f"^deepspeed_copy.toml: .*{message}"):
        read(text.replace(right, wrong), tmp_path)


def test_yesterday_is_due(tmp_path: Path) -> None:
    yesterday = datetime.date.today() - datetime.timedelta(days=1)
    assert read(RECORD.replace("2999-01-01", yesterday.isoformat()), tmp_path).due
    assert not read(RECORD, tmp_path).due


def test_every_finding_of_the_suites_can_be_read() -> None:
    assert {finding.id for finding in findings.read()} == {path.stem for path in findings.FOLDER.glob("*.toml")}


def test_the_findings_that_the_readme_names_exist() -> None:
    section = (
        (findings.FOLDER.parents[1] / "README.md").read_text().split("## What is wrong today")[1].split("\n## ")[0]
    )
    named = re.findall(r"^- `(\w+)`: ", section, re.MULTILINE)
    assert len(named) == 10
    assert set(named) <= {finding.id for finding in findings.read() if finding.kind == "wrong result"}
