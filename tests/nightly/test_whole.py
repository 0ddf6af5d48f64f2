"""A night that was not finished goes on with the steps that are left, within a day."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness import cli
from harness.nightly import config, whole
from harness.nightly.night import Night, Result
from harness.nightly.steps import Step
from tests.nightly.examples import written

STEPS = ("trend", "compare", "report")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("harness.nightly.steps.RUN_NEEDED", ())
    return []


def steps(calls: list[str], **others: Callable[[Night], Result]) -> Mapping[str, Step]:
    def step(name: str) -> Step:
        def take(night: Night) -> Result:
            calls.append(name)
            return others[name](night) if name in others else Result(name, "ok", "")

        return take

    return {name: step(name) for name in STEPS}


def interrupted(_: Night) -> Result:
    raise KeyboardInterrupt("terminated")


def summary(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "nightly" / "summary.json").read_text())
    return found


def begun(folder: Path, calls: list[str]) -> Path:
    """The state of a night that was interrupted in its second step."""
    assert whole.nightly(config.read(written(folder, "")), steps=steps(calls, compare=interrupted)) == 2
    assert calls == ["trend", "compare"]
    assert summary(folder)["status"] == "interrupted"
    return folder / "nightly" / "unfinished.json"


def test_a_night_goes_on_with_the_step_that_was_interrupted(tmp_path: Path, calls: list[str]) -> None:
    state = begun(tmp_path, calls)
    assert whole.nightly(config.read(written(tmp_path, "")), resume=True, steps=steps(calls)) == 0
    assert calls == ["trend", "compare", "compare", "report"]
    assert (summary(tmp_path)["status"], summary(tmp_path)["resumed"]) == ("passed", 1)
    assert not state.exists()


def test_a_night_without_resume_or_of_another_day_is_a_new_one(
    tmp_path: Path, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    state = begun(tmp_path, calls)
    assert whole.nightly(config.read(written(tmp_path, "")), steps=steps(calls, compare=interrupted)) == 2
    assert "would go on with --resume; this is a new one" in capsys.readouterr().out
    kept = json.loads(state.read_text())
    kept["started"] = (datetime.now(UTC) - timedelta(hours=25)).isoformat()
    state.write_text(json.dumps(kept))
    calls.clear()
    assert whole.nightly(config.read(written(tmp_path, "")), resume=True, steps=steps(calls)) == 0
    assert calls == list(STEPS)
    assert "is older than a day; this is a new one" in capsys.readouterr().out


def test_nothing_to_resume_is_a_new_night(tmp_path: Path, calls: list[str]) -> None:
    assert whole.nightly(config.read(written(tmp_path, "")), resume=True, steps=steps(calls)) == 0
    assert (calls, summary(tmp_path)["resumed"]) == (list(STEPS), 0)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"results": []}', '{"results": [{"x": 1}]}'])
def test_a_state_that_cannot_be_read_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nightly").mkdir()
    (tmp_path / "nightly" / "unfinished.json").write_text(text)
    assert cli.main(["nightly", str(written(tmp_path, "")), "--resume"]) == cli.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "unfinished.json cannot be read" in line


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nightly").write_text("a file")
    assert cli.main(["nightly", str(written(tmp_path, ""))]) == cli.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("File exists")


def test_steps_that_the_configuration_leaves_out_are_not_taken(tmp_path: Path, calls: list[str]) -> None:
    assert whole.nightly(config.read(written(tmp_path, 'steps = ["report"]')), steps=steps(calls)) == 0
    assert calls == ["report"]
