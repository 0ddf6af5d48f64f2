"""Worlds in unusual environments: folders with long and odd names, and variables of a user's shell."""

import tempfile
from pathlib import Path

import pytest
import torch

from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done, Raised
from harness.spec import Case, Topology
from harness.spec.named import load
from impls.parallelism.gradient_accumulation import CARD
from tests import labs
from tests.launch.worlds import run


@pytest.mark.parametrize("name", ["n" * 200, "a b#c?d%20é"], ids=["long", "odd"])
def test_a_folder_for_temporary_files_may_have_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)  # requested once
    with LocalLauncher() as launcher:
        assert run(launcher, "total") == (Done(0, 3.0), Done(1, 3.0))
        assert list(folder.glob("plumbline-*"))
    assert not list(folder.glob("plumbline-*"))


def test_an_engine_does_not_answer_for_what_the_shell_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "3")
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    case = Case(CARD.name, next(iter(CARD.variants)), "accelerate", Topology.parse("dp2"), load("tiny"))
    with LocalLauncher() as launcher:
        lab = labs.make({CARD.name: CARD}, launcher=launcher)
        measurements = lab.measure("parity", case)
        lab.runner.close()
    assert {measurement.verdict for measurement in measurements} == {"pass"}, [
        measurement.reason for measurement in measurements
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
def test_a_run_on_gpus_whose_ranks_see_none_is_an_error_of_one_line_and_no_figure() -> None:
    with LocalLauncher(gpus=2) as launcher:
        for outcome in run(launcher, "total"):
            assert isinstance(outcome, Raised)
            assert outcome.text == f"this run has 2 GPUs, but PyTorch {torch.__version__} sees 0 in its ranks"
