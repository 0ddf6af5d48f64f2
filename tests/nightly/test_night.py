"""Whole nights, in processes of their own: killed, resumed, ended, tried again."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from harness.store import Store
from tests.nightly.examples import STEPS, SUITES, figures, plant, ran, started, taken, written

KILL = "if len(taken) == {}: os.kill(os.getpid(), signal.SIGKILL)"
ERROR = """if (name, case.id) == ("memory", "zero2-torch-dp2-fp32") and taken.count(name + " " + case.id) <= {}:
    return [no_run("error", "{}")]"""
FULL = "OSError: [Errno 28] No space left on device"


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "nightly" / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a night in which nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed")
    written(folder, STEPS.replace("]", ', "report"]') + SUITES)
    code, output = ran(folder, plant(folder))
    assert code == 0, output
    return folder


def test_a_night_leaves_its_figures_summaries_log_and_report(undisturbed: Path) -> None:
    found = summary(undisturbed)
    assert (found["status"], found["exit_code"], found["resumed"]) == ("passed", 0, 0)
    assert [step["name"] for step in found["steps"]] == ["suites", "report"]
    assert found["counts"] == {"pass": len(figures(undisturbed))}
    assert Store.open(str(undisturbed / "plumbline.db"), create=False).runs()[0]["run"] == found["run"]
    for name in ("summary.md", "log.txt", "junit.xml", "report/index.html"):
        assert (undisturbed / "nightly" / name).exists(), name
    assert not (undisturbed / "nightly" / "unfinished.json").exists()
    assert len(taken(undisturbed)) == len(set(taken(undisturbed)))


def test_suites_that_were_killed_go_on_with_the_cases_that_are_left(undisturbed: Path, tmp_path: Path) -> None:
    written(tmp_path)
    code, output = ran(tmp_path, plant(tmp_path, KILL.format(7)))
    assert code == 3, output
    assert summary(tmp_path)["steps"][0]["line"] == "the suites were killed by signal 9"
    killed = summary(tmp_path)["run"]
    written(tmp_path, STEPS + SUITES.replace('"torch"', '"deepspeed"'))
    code, output = ran(tmp_path, plant(tmp_path), "--resume")
    assert (code, output) == (4, "plumbline: night.toml: [suites] changed since the night that was not finished\n")
    written(tmp_path)
    code, output = ran(tmp_path, plant(tmp_path), "--resume")
    assert code == 0, output
    found = summary(tmp_path)
    assert (found["run"], found["resumed"]) == (killed, 1)
    assert figures(tmp_path) == figures(undisturbed)
    twice = [test for test in set(taken(tmp_path)) if taken(tmp_path).count(test) > 1]
    assert len(twice) == 1, "only the test that was killed is taken again"
    (run,) = Store.open(str(tmp_path / "plumbline.db"), create=False).runs()
    assert run["status"] == "finished"
    assert "--resume" not in run["command"]


def test_a_night_that_is_killed_at_random_moments_has_the_same_figures_in_the_end(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Kills the night itself; its suites end with it."""
    written(tmp_path)
    draw = random.Random(29)
    environment = plant(tmp_path, "time.sleep(0.05)")
    kills = 0
    for _ in range(20):
        night = started(tmp_path, environment, "--resume")
        before, wait = len(taken(tmp_path)), draw.randrange(3, 10)
        deadline = time.monotonic() + 600
        while night.poll() is None and len(taken(tmp_path)) < before + wait and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.1)
        if night.poll() is not None:
            break
        night.send_signal(signal.SIGKILL)
        night.communicate()
        kills += 1
    output = night.communicate()[0]
    assert night.returncode == 0, output
    assert kills >= 2
    assert figures(tmp_path) == figures(undisturbed)
    assert len(Store.open(str(tmp_path / "plumbline.db"), create=False).runs()) == 1
    assert len(taken(tmp_path)) <= len(set(taken(tmp_path))) + kills


def test_a_night_that_is_terminated_says_so(tmp_path: Path) -> None:
    written(tmp_path)
    night = started(tmp_path, plant(tmp_path, "time.sleep(0.3)"))
    while len(taken(tmp_path)) < 3:
        time.sleep(0.05)
    night.send_signal(signal.SIGTERM)
    output, _ = night.communicate(timeout=600)
    assert night.returncode == 2, output
    assert "--resume does what is left" in output
    found = summary(tmp_path)
    assert (found["status"], found["exit_code"]) == ("interrupted", 2)
    assert Store.open(str(tmp_path / "plumbline.db"), create=False).runs()[0]["status"] == "interrupted"


def test_a_failure_of_the_infrastructure_is_tried_again_and_nothing_else_is(undisturbed: Path, tmp_path: Path) -> None:
    written(tmp_path)
    code, output = ran(tmp_path, plant(tmp_path, ERROR.format(1, FULL)))
    assert code == 0, output
    again = "memory zero2-torch-dp2-fp32"
    assert [test for test in taken(tmp_path) if taken(tmp_path).count(test) > 1] == [again, again]
    assert figures(tmp_path) == figures(undisturbed)
    (retry,) = summary(tmp_path)["retries"]
    assert (retry["attempts"], retry["verdict"]) == (2, "pass")
    assert retry["signatures"] == ["file system (ENOSPC, ESTALE)"]
    assert "### Tried again (1)" in (tmp_path / "nightly" / "summary.md").read_text()


@pytest.mark.parametrize(
    ("change", "code"), [(('"zero"', '"zeroo"'), 4), (("gpus = 0", 'gpus = 0\nselect = "nothing"'), 5)]
)
def test_suites_that_cannot_begin_are_told_by_their_exit_code(
    change: tuple[str, str], code: int, tmp_path: Path
) -> None:
    written(tmp_path, STEPS + SUITES.replace(*change))
    assert ran(tmp_path, {})[0] == code
    found = summary(tmp_path)
    assert [step["state"] for step in found["steps"]] == ["broke"]
    assert found["run"] == ""
