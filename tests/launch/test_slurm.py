"""Worlds over the two nodes of a real Slurm on this machine."""

import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from harness.launch import slurm
from harness.launch.cluster import ClusterLauncher
from harness.launch.placement import Cluster, LaunchError
from tests.launch import slurm_here, two_nodes
from tests.launch.slurm_here import SlurmHere
from tests.launch.two_nodes import TWO
from tests.launch.worlds import gone
from tests.sessions import SUITES, TINY

needs_slurm = pytest.mark.skipif(bool(slurm_here.absent()), reason=slurm_here.absent() or "it is here")


@pytest.fixture(scope="module")
def here() -> Iterator[SlurmHere]:
    with slurm_here.running() as here, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(here.conf))
        yield here


@pytest.fixture
def launcher(here: SlurmHere) -> Iterator[ClusterLauncher]:
    with slurm.launch(0, {}, TWO) as launcher:
        assert [node.name for node in launcher.nodes] == ["n1", "n2"]
        yield launcher


@needs_slurm
def test_an_all_reduce_and_parity_span_two_nodes(launcher: ClusterLauncher) -> None:
    two_nodes.one_all_reduce_spans_both(launcher)
    two_nodes.parity_passes_over_both(launcher)


@needs_slurm
@pytest.mark.parametrize("name", ["slurm", "torchrun"])
def test_a_session_in_an_allocation_uses_its_nodes(name: str, here: SlurmHere, user: pytest.Pytester) -> None:
    options = [*TINY, "--launcher", name, "--topics", "zero", "--engines", "reference", "--measures", "parity"]
    options += ["-k", "zero3"]
    command = ["salloc", "--nodes=2", "--exclusive", sys.executable, "-m", "pytest", SUITES, *options]
    found = user.run(*command, "-p", "no:cacheprovider", timeout=300)
    assert found.ret == pytest.ExitCode.OK
    assert found.parseoutcomes().keys() == {"passed", "deselected"}
    _wait_until_idle()


@needs_slurm
def test_losing_a_node_ends_its_case_and_no_other(here: SlurmHere, launcher: ClusterLauncher) -> None:
    agent = psutil.Process(launcher.nodes[1].pid)
    below = agent.children(recursive=True)
    daemon, step = here.nodes["n2"], agent.parent()

    def lose() -> None:
        daemon.kill()
        for process in (step, agent):
            if process is not None:
                process.kill()

    two_nodes.losing_the_second_ends_its_case_and_no_other(launcher, lose)
    assert gone([process.pid for process in below], within=3.0)


@needs_slurm
def test_options_that_slurm_refuses_are_told_in_its_own_words(here: SlurmHere) -> None:
    with pytest.raises(LaunchError, match=r"srun ended: .*invalid partition specified: nowhere.*--slurm OPTIONS"):
        slurm.launch(0, {}, Cluster(nodes=2, slurm="--partition=nowhere"))


def test_without_srun_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match="srun is not on PATH; start on a node of a Slurm cluster, or use"):
        slurm.launch(0, {}, TWO)


def _wait_until_idle() -> None:
    deadline = time.monotonic() + 30.0
    while subprocess.run(["squeue", "--noheader"], capture_output=True, text=True).stdout.strip():
        assert time.monotonic() < deadline
        time.sleep(0.2)
