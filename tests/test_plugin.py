"""The suites, run in their own process as a user runs them."""

import json
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from harness import findings, hooks
from tests.launch.worlds import gone
from tests.sessions import SUITES, TINY, collected, run, store, usage_error

LISTS = ("--topics", "--engines", "--workload", "--topologies", "--dtypes", "--measures")
MINE = """
import os, signal, time
from pathlib import Path

def good(workload, topology, **variant):
    from impls.parallelism.data_parallel.reference import build
    return build(workload, topology, **variant)

def dies(workload, topology, **variant):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return good(workload, topology, **variant)

def hangs(workload, topology, **variant):
    Path("rank" + os.environ["RANK"]).write_text(str(os.getpid()))
    time.sleep(600)
"""
SPY = """
import json, sys
from pathlib import Path

def pytest_unconfigure():
    Path("spy.json").write_text(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topics", "zerro"], "unknown topic 'zerro'; did you mean zero?"),
        (["--engines", "deepsped"], "unknown engine 'deepsped'; did you mean deepspeed or "),
        (["--workload", "tyny"], "unknown workload 'tyny'; did you mean tiny"),
        (["--workload", "mine.toml"], "mine.toml: unknown field 'batchsize'; did you mean batch_size?"),
        (["--measures", "paraty"], "unknown measure 'paraty'; did you mean parity?"),
        (["--workload", "tiny", "--topologies", "dp3"], "batch_size 8 is not a multiple of dp × micro_batches = 3"),
        (["--gpus", "4096"], "--gpus 4096: this machine has "),
        (["--gpus", "-1"], "--gpus must be at least 0, not -1"),
        (["--ranks", "0"], "--ranks must be at least 1, not 0"),
        *((["--case-timeout", text], f"above 0, not {text}") for text in ("0", "-1", "nan", "inf")),
        *(([f"{option}="], f"{option} '' has no name") for option in LISTS),
        (["--topics", ","], "--topics ',' has no name; separate names by commas, or leave it out"),
        (["--engines", "torch,,reference"], "--engines 'torch,,reference' has an empty name"),
        (["--topics", "zero,dpo, zero"], "--topics 'zero,dpo, zero' names zero twice; name it once"),
        (["--workload", "tiny,tiny"], "names tiny twice"),
        (["--store="], "--store is empty; give a path or URL, or leave it out for plumbline.db"),
        (["--report="], "--report is empty; give a path or URL, or leave it out for report"),
        (["--report", "mine.toml"], "--report mine.toml: the report cannot be written there (File exists)"),
        (["--report", "mine.toml/there"], "the report cannot be written there (Not a directory)"),
        (["--store", "nowhere/plumbline.db"], "--store: store nowhere/plumbline.db: folder nowhere does not exist"),
        (
            ["--workload", "a/sft.toml,b/sft.toml"],
            "a/sft.toml and b/sft.toml are different workloads, but their cases would",
        ),
        (["--workload", "comma,name.toml"], "comma,name.toml: lr must be positive and finite, not -1.0"),
        (["--add-engine", "zero:mine=json:lead"], "json/__init__.py has no 'lead'; did you mean load or loads?"),
        (["--add-engine", "zero:mine=nowhere:build"], "no module 'nowhere' in the current folder or the environment"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, list) else "",
)
def test_a_wrong_option_is_a_usage_error_in_one_line(user: pytest.Pytester, arguments: list[str], message: str) -> None:
    user.path.joinpath("mine.toml").write_text("batchsize = 8\n")
    user.path.joinpath("comma,name.toml").write_text("lr = -1\n")
    for steps, folder in enumerate(("a", "b"), 3):
        user.mkdir(folder).joinpath("sft.toml").write_text(f"steps = {steps}\n")
    assert message in usage_error(run(user, *arguments))
    assert not user.path.joinpath("plumbline.db").exists()


def test_documents_without_a_separator_token_are_reported_in_the_summary(user: pytest.Pytester) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.save(str(user.path / "tokenizer.json"))
    user.path.joinpath("text.jsonl").write_text('{"text": "a"}\n' * 8 * 33)
    user.path.joinpath("mine.toml").write_text('data = "text.jsonl"\ntokenizer = "."\n')
    found = run(user, "--collect-only", "--topics", "zero", "--workload", "mine.toml")
    assert found.ret == pytest.ExitCode.OK
    (line,) = [line for line in found.outlines if "has no end-of-text token" in line]
    assert "mine.toml: " in line


@pytest.fixture
def shown_gpus(user: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose nvidia-smi lists GPUs, none of which PyTorch may see."""
    program = user.path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 580.65.06\necho 580.65.06\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(user.path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("shown_gpus")
def test_gpus_that_pytorch_does_not_see_give_a_cpu_run_that_says_so(user: pytest.Pytester) -> None:
    found = run(user, *TINY[2:], "--topics", "zero", "--engines", "reference", "-k", "memory-zero1")
    assert found.ret == pytest.ExitCode.OK
    (line,) = [line for line in found.outlines if "nvidia-smi" in line]
    assert line.startswith("nvidia-smi lists 2 GPUs, but PyTorch ")
    assert line.endswith(": CPU ranks")
    assert {record["device"] for record in store().records(measure="memory")} == {"cpu"}
    assert store().runs()[0]["environment"]["gpus"] == []


@pytest.mark.usefixtures("shown_gpus")
def test_gpus_that_pytorch_does_not_see_cannot_be_asked_for(user: pytest.Pytester) -> None:
    found = run(user, "--gpus", "2")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in found.errlines if line.strip()]
    assert line.startswith("ERROR: --gpus 2: this machine has 0 (nvidia-smi lists 2 GPUs, but PyTorch ")
    assert "nvidia-smi" not in "\n".join(run(user, *TINY, "--collect-only", "-q", "--topics", "zero").outlines)


def test_claims_are_judged_where_a_topic_has_no_case_at_this_depth(user: pytest.Pytester) -> None:
    found = run(user, "--gpus", "0", "--topics", "mixed_precision_drift", "--depth", "quick")
    assert found.ret == pytest.ExitCode.OK
    assert [record["verdict"] for record in store().records(measure="claim")] == ["skipped"]


def test_a_plugin_that_has_an_option_timeout_is_no_hindrance(user: pytest.Pytester) -> None:
    """pytest-timeout has this option."""
    user.path.joinpath("other.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--timeout')\n")
    assert collected(user, *TINY, "-p", "other", "--timeout", "9", "--case-timeout", "60", "--topics", "zero")


def test_work_that_is_narrowed_by_options_makes_no_finding_stale(user: pytest.Pytester) -> None:
    """Some failures occur only at two ranks: a session of one rank cannot tell."""
    arguments = ("--gpus", "0", "--topics", "zero", "--engines", "fairscale,reference", "--topologies", "dp1")
    found = run(user, *arguments, "--dtypes", "fp32", "--measures", "memory")
    assert found.ret == pytest.ExitCode.OK, "\n".join(found.outlines[-20:])


def test_a_keyword_selects_by_the_words_of_the_case_id(user: pytest.Pytester) -> None:
    found = collected(user, *TINY, "-k", "zero3 and reference", "--measures", "parity,memory")
    names = ("zero3", "clip_zero3")  # whatever has the word in its id
    assert found == {
        f"test_measure[{measure}-{name}-reference-dp2-fp32]" for measure in ("parity", "memory") for name in names
    }


def test_a_mark_selects_exactly_by_engine_and_variant(user: pytest.Pytester) -> None:
    found = collected(user, *TINY, "-m", "case(topic='zero', engine='deepspeed', stage=3)")
    ids = [name.removeprefix("test_measure[").partition("-") for name in found]
    measures = {measure for measure, _, _ in ids}
    assert {"parity", "memory", "traffic"} <= measures
    assert {case for _, _, case in ids} == {"zero3-deepspeed-dp2-fp32]"}


def test_a_mark_selects_a_measure(user: pytest.Pytester) -> None:
    found = collected(user, *TINY, "-m", "traffic and case(topic='zero')")
    assert found
    assert all(name.startswith("test_measure[traffic-zero") for name in found)


def test_a_session_of_some_work_holds_only_the_findings_that_speak_of_it(user: pytest.Pytester) -> None:
    every, some = (
        {line for line in run(user, "--collect-only", "-q", *arguments).outlines if "test_finding[" in line}
        for arguments in ((), ("--topics", "zero"))
    )
    assert some < every
    for line in some:
        finding = next(each for each in findings.read() if each.id == line.partition("[")[2].rstrip("]"))
        assert any(symptom.case.startswith(("zero", "*")) for symptom in finding.symptoms)


def test_collecting_imports_neither_torch_nor_an_engine(user: pytest.Pytester) -> None:
    user.path.joinpath("spy.py").write_text(SPY)
    assert len(collected(user, "-p", "spy")) > 100
    modules = json.loads(user.path.joinpath("spy.json").read_text())
    assert {"torch", "deepspeed", "megatron", "trl", "transformers", "pandas", "scipy"} & set(modules) == set()


def test_an_added_engine_is_measured_and_a_killed_rank_ends_its_own_case_only(user: pytest.Pytester) -> None:
    user.path.joinpath("mine.py").write_text(MINE)
    engines = ("--add-engine", "data_parallel:dead=mine:dies", "--add-engine", "data_parallel:mine=mine:good")
    found = run(
        user, *TINY, *engines, "--engines", "dead,mine", "-k", "ddp_naive", "--measures", "parity,memory,traffic"
    )
    assert found.ret == pytest.ExitCode.TESTS_FAILED
    found.assert_outcomes(failed=3, passed=3)
    verdicts: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in store().records():
        verdicts[record["engine"]][record["measure"]].add(record["verdict"])
    assert verdicts["mine"] == {measure: {"pass"} for measure in ("parity", "memory", "traffic")}
    assert verdicts["dead"] == {measure: {"error"} for measure in ("parity", "memory", "traffic")}
    (reason,) = {record["reason"] for record in store().records(engine="dead")}
    assert "\n\nrank 1 · Killed" in reason.partition("killed by SIGKILL")[2]
    assert store().runs()[0]["status"] == "finished"
    assert user.path.joinpath("report").is_dir()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_session_that_is_ended_keeps_what_it_measured_and_leaves_no_rank(
    user: pytest.Pytester, signum: signal.Signals
) -> None:
    user.path.joinpath("mine.py").write_text(MINE)
    engines = ("--add-engine", "data_parallel:a_good=mine:good", "--add-engine", "data_parallel:b_hangs=mine:hangs")
    options = ("--engines", "a_good,b_hangs", "-k", "ddp_naive", "--measures", "parity")
    command = [sys.executable, "-m", "pytest", SUITES, "-p", "no:cacheprovider", *TINY, *engines, *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_interruptible
    ) as session:
        ranks = _pids(user.path, 2, session)  # begun ahead, while the other engine is judged
        while not store().records(engine="a_good"):
            assert session.poll() is None
            time.sleep(0.05)
        session.send_signal(signum)
        output, _ = session.communicate(timeout=60)
    assert session.returncode == pytest.ExitCode.INTERRUPTED, output
    assert gone(ranks, within=1.0)
    (status,) = [status["status"] for status in store().runs()]
    assert status == "interrupted"
    measured = store().records(engine="a_good")
    assert {record["verdict"] for record in measured} == {"pass"}
    assert not store().records(engine="b_hangs")
    assert "plumbline.db" in output


def test_an_interrupt_where_a_frame_is_at_no_line_is_reported_as_any_other() -> None:
    code = compile("raise KeyboardInterrupt", "nowhere", "exec").replace(co_linetable=b"")
    with pytest.raises(KeyboardInterrupt) as interrupt:
        exec(code)
    assert interrupt.traceback[-1]._rawentry.tb_lineno is None
    hooks.pytest_keyboard_interrupt(interrupt)
    crash = interrupt.getrepr(funcargs=True).reprcrash
    assert crash is not None
    assert "KeyboardInterrupt" in crash.message


def _interruptible() -> None:
    """A shell's background jobs, and their children, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _pids(folder: Path, count: int, session: "subprocess.Popen[Any]") -> list[int]:
    """The ranks that wrote their process ids when they began to hang."""
    deadline = time.monotonic() + 60.0
    while True:
        found = [file.read_text() for file in folder.glob("rank*")]
        if len(found) == count and all(found):
            return [int(text) for text in found]
        assert session.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
