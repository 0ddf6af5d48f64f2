"""A night's configuration is read strictly."""

import datetime
import re
from dataclasses import fields
from pathlib import Path

import pytest

from harness import cli
from harness.nightly import config
from harness.nightly.config import Config, Suites
from harness.nightly.quarantine import Entry
from harness.options import OPTIONS

ENTRY = '[[quarantine]]\ncase = "zero*"\nowner = "ada"\nuntil = 2999-01-01\nreason = "known"\n'


def read(text: str, folder: Path) -> Config:
    (folder / "night.toml").write_text(text)
    return config.read(folder / "night.toml")


def test_an_empty_file_is_a_night_at_full_depth(tmp_path: Path) -> None:
    found = read("", tmp_path)
    assert found.suites.arguments() == ["--depth=full", "--launcher=local"]
    assert found.steps == config.STEPS
    assert (found.store, found.folder) == (str(tmp_path / "plumbline.db"), str(tmp_path / "nightly"))


def test_every_option_of_the_suites_is_a_field() -> None:
    own = {"--store", "--report", "--resume", "--baseline", "--single-file"}  # which the night gives itself
    names = {f"--{field.name.replace('_', '-')}" for field in fields(Suites)} - {"--select"}
    assert names == OPTIONS.keys() - own


def test_options_reach_the_suites(tmp_path: Path) -> None:
    text = '[suites]\ntopics = ["zero", "dpo"]\ngpus = 0\ncase_timeout = 90\nadd_engine = ["zero:a=b:c"]\nselect = "x"'
    given = read(text, tmp_path).suites.arguments()
    assert {"--topics=zero,dpo", "--gpus=0", "--case-timeout=90", "--add-engine=zero:a=b:c"} <= {*given}
    assert given[-2:] == ["-k", "x"]


def test_a_server_and_an_absolute_path_stay_as_they_are(tmp_path: Path) -> None:
    assert read('store = "postgresql://me@host/base"', tmp_path).store == "postgresql://me@host/base"
    assert read('folder = "/srv/nights"', tmp_path).folder == "/srv/nights"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('stores = "x"', "night.toml: unknown field 'stores'; did you mean 'store'?"),
        ("store = 3", "night.toml: store must be a text, not 3"),
        ('store = " "', "night.toml: store is empty; leave it out for its default"),
        ('suites = "full"', "night.toml: suites must be a table [suites], not 'full'"),
        ('steps = ["suites", "trends"]', "night.toml: steps: unknown step 'trends'; did you mean 'trend'?"),
        ('steps = "suites"', "night.toml: steps must be a list of texts, not 'suites'"),
        ('[suites]\ndepht = "full"', "night.toml: [suites]: unknown field 'depht'; did you mean 'depth'?"),
        ('[suites]\ndepth = "ful"', "night.toml: [suites]: unknown depth 'ful'; did you mean 'full'?"),
        ('[suites]\nlauncher = "slurn"', "night.toml: [suites]: unknown launcher 'slurn'; "),
        ("[suites]\ngpus = true", "night.toml: [suites]: gpus must be a whole number, not True"),
        ("[suites]\ngpus = 1.5", "night.toml: [suites]: gpus must be a whole number, not 1.5"),
        ('[suites]\ncase_timeout = "1"', "night.toml: [suites]: case_timeout must be a number, not '1'"),
        ('[suites]\ntopics = ["zero", 3]', "night.toml: [suites]: topics must be a list of texts, not ['zero', 3]"),
        ("[notify]\ntimeout = 0", "night.toml: [notify]: timeout must be above 0 seconds, not 0"),
        ('[notify]\nwebhook = "ftp://x"', "night.toml: [notify]: webhook must begin with https://, http:// or $"),
        (ENTRY.replace("owner", "owners"), "night.toml: [[quarantine]] 1: unknown field 'owners'; did you mean"),
        (ENTRY.replace('owner = "ada"\n', ""), "night.toml: [[quarantine]] 1: the field 'owner' is missing"),
        (ENTRY.replace('"ada"', '" "'), "night.toml: [[quarantine]] 1: owner is empty"),
        (ENTRY.replace("2999-01-01", '"later"'), "night.toml: [[quarantine]] 1: until must be a date, as 2027-03-31"),
        (ENTRY.replace("2999-01-01", "2999-01-01T00:00:00"), "night.toml: [[quarantine]] 1: until must be a date"),
        (ENTRY.replace("[[quarantine]]", "[quarantine]"), "night.toml: quarantine must be tables [[quarantine]]"),
        (
            ENTRY + 'measure = "memroy"',
            "night.toml: [[quarantine]] 1: unknown measure 'memroy'; did you mean",
        ),
        ("retry_pause = -1", "night.toml: retry_pause must be 0 seconds or more, not -1"),
        ('quarantine_file = "none.toml"', "there is no file"),
        ("store =", "night.toml: Invalid value (at"),
    ],
)
def test_a_wrong_field_is_one_line_with_what_is_allowed(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "night.toml").write_text(text)
    assert cli.main(["nightly", str(tmp_path / "night.toml")]) == cli.USAGE
    error = capsys.readouterr().err
    assert error.startswith(f"plumbline: {message}")
    assert len(error.splitlines()) == 1


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nightly", str(tmp_path / "no.toml")]) == cli.USAGE
    assert capsys.readouterr().err == f"plumbline: there is no file {tmp_path / 'no.toml'}\n"
    assert cli.main(["nightly"]) == cli.USAGE
    assert "--example" in capsys.readouterr().err


def test_entries_of_a_file_of_their_own_follow_the_others(tmp_path: Path) -> None:
    (tmp_path / "held.toml").write_text(ENTRY.replace("zero*", "tp*") + 'measure = "memory"\n')
    found = read('quarantine_file = "held.toml"\n' + ENTRY, tmp_path).quarantine
    day = datetime.date(2999, 1, 1)
    assert found == (Entry("zero*", "ada", day, "known"), Entry("tp*", "ada", day, "known", "memory"))


def test_the_example_can_be_read_with_and_without_its_comments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["nightly", "--example"]) == 0
    text = capsys.readouterr().out
    found = read(text, tmp_path)
    assert found == read("", tmp_path)
    shown = re.sub(r"^# (?=\[\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)
    (tmp_path / "quarantine.toml").write_text(ENTRY)
    everything = read(shown, tmp_path)
    for part in (everything, everything.suites, everything.notify, everything.quarantine[0]):
        names = {field.name for field in fields(part)} - {"path", "suites", "notify", "quarantine"}
        assert [name for name in names if f"{name} = " not in shown] == []
    assert everything.suites.gpus == 8
