"""Worlds over several agents, which here are processes of this machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from harness.launch import cluster, wire
from harness.launch.cluster import ClusterLauncher
from harness.launch.outcome import Done, Failure, Hung, Job, Killed, Lost, Raised, describe
from harness.launch.placement import Cluster, LaunchError, Part, blocks, count
from harness.launch.started import Processes, agent, variables
from harness.spec import Case, Topology
from harness.spec.named import load
from impls.parallelism.hybrid_shard import CARD as HYBRID
from tests import labs
from tests.launch import two_nodes
from tests.launch.two_nodes import TWO
from tests.launch.worlds import JOBS, LONG, NOTICED, gone, run

# Variables of a job of two launchers, in which a session may run.
JOB = {
    "RANK": "5",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "192.0.2.7",
    "MASTER_PORT": "1",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "16",
    "SLURM_JOB_ID": "7",
    "TORCHELASTIC_RUN_ID": "none",
    "GROUP_RANK": "3",
}


class Here:
    """Starts agents as processes of this machine."""

    def __init__(self, *names: str, key: bytes | None = None) -> None:
        self.names, self.key, self.processes = names, key, Processes()

    def start(self, address: str, port: int, key: bytes) -> None:
        for name in self.names:
            command = [sys.executable, "-m", *agent(address, port, name)]
            self.processes.start(name, command, variables(self.key or key))

    def pending(self) -> bool:
        return False

    def trouble(self) -> str:
        return "; ".join(f"{name}: {self.processes.output(name)}" for name in self.processes.ended())

    def advice(self) -> str:
        return "look for them"

    def stop(self) -> None:
        self.processes.stop()


def two(where: Cluster = TWO) -> ClusterLauncher:
    return ClusterLauncher(Here("a", "b"), 0, {}, where)


@pytest.fixture(scope="module")
def launcher() -> Iterator[ClusterLauncher]:
    with two() as launcher:
        launcher.world(2, JOBS, JOBS).close()  # imports torch in the servers before times are measured
        yield launcher


def test_ranks_are_placed_in_blocks_of_equal_shares_or_fill_node_after_node() -> None:
    assert blocks(4, 2, 4, fill=False) == (2, 2)
    assert blocks(3, 2, 4, fill=False) == (2, 1)
    assert blocks(1, 2, 4, fill=False) == (1,)
    assert blocks(4, 2, 4, fill=True) == (4,)
    assert blocks(5, 2, 4, fill=True) == (4, 1)
    assert blocks(9, 2, 4, fill=False) == blocks(9, 2, 4, fill=True) == blocks(1, 0, 4, fill=False) == ()
    assert [list(Part((2, 1), node).ranks) for node in range(2)] == [[0, 1], [2]]


def test_the_number_of_nodes_is_asked_or_counted_or_the_allocations() -> None:
    allocation = {"SLURM_JOB_NUM_NODES": "3"}
    assert count("local", (), None, allocation) == 1
    assert count("torchrun", ("a", "b"), None, allocation) == 2
    assert count("torchrun", (), None, allocation) == count("slurm", (), None, allocation) == 3
    assert count("slurm", (), 2, allocation) == 2
    for launcher, way in (("torchrun", "--hosts A,B"), ("slurm", "--nodes N"), ("ray", "--nodes N")):
        with pytest.raises(LaunchError, match=way):
            count(launcher, (), None, {})


def test_a_world_spans_its_nodes(launcher: ClusterLauncher) -> None:
    two_nodes.one_all_reduce_spans_both(launcher)


def test_parity_passes_over_two_agents(launcher: ClusterLauncher) -> None:
    two_nodes.parity_passes_over_both(launcher)


def test_groups_of_neighbours_are_the_nodes_ranks(launcher: ClusterLauncher) -> None:
    """Only gradients cross the nodes, to the byte."""
    case = Case(HYBRID.name, "mics", "reference", Topology(dp=4), load("tiny"))
    lab = labs.make({HYBRID.name: HYBRID}, launcher=launcher)
    found = {measurement.quantity: measurement for measurement in lab.measure("traffic", case)}
    assert found["across_groups"].verdict == "pass"
    assert found["across_groups"].detail["nodes"] == "2 + 2 ranks on 2 nodes"


def test_a_world_runs_job_after_job_with_its_state(launcher: ClusterLauncher) -> None:
    world = launcher.world(2, JOBS, JOBS)
    asked = [world.run(Job(f"{JOBS}:remembers", {}), LONG) for _ in range(2)]
    world.close()
    assert asked == [(Done(0, 1), Done(1, 1)), (Done(0, 2), Done(1, 2))]
    assert all(isinstance(outcome, Killed) for outcome in world.run(Job(f"{JOBS}:total", {}), LONG))


@pytest.mark.parametrize(("job", "kind"), [("one_raises", Raised), ("one_is_killed", Killed), ("one_exits", Killed)])
def test_a_failure_on_one_node_is_noticed_on_the_other(
    launcher: ClusterLauncher, job: str, kind: type[Failure]
) -> None:
    start = time.monotonic()
    outcomes = run(launcher, job)
    assert time.monotonic() - start < 2 * NOTICED
    assert isinstance(outcomes[1], kind)
    assert isinstance(outcomes[0], Failure)  # it waits for rank 1
    assert describe(outcomes).startswith(f"{outcomes[1].message}\n\nrank 1 · {kind.__name__}")


def test_a_rank_that_waits_for_nobody_is_stopped_when_another_node_has_a_failure(launcher: ClusterLauncher) -> None:
    sleeping, raised = run(launcher, "one_raises_and_the_other_sleeps", timeout=30.0)
    assert isinstance(raised, Raised)
    assert isinstance(sleeping, Hung)
    assert sleeping.at < 15.0


def test_a_rank_that_does_not_answer_in_time_is_hung_wherever_it_is(launcher: ClusterLauncher) -> None:
    waiting, stuck = run(launcher, "one_never_enters", timeout=1.0)
    assert isinstance(waiting, Hung)
    assert "it is waiting in all_reduce" in waiting.text
    assert isinstance(stuck, Hung)
    assert "it is in no collective" in stuck.text


def test_ranks_and_servers_end_with_the_launcher() -> None:
    with two() as launcher:
        agents = [psutil.Process(node.pid) for node in launcher.nodes]
        run(launcher, "leaves_a_child")
        pids = [process.pid for agent in agents for process in (agent, *agent.children(recursive=True))]
        assert len(pids) == 4
    assert gone(pids, within=3.0)


def test_losing_an_agent_ends_its_case_and_no_other() -> None:
    with two() as launcher:
        agent = psutil.Process(launcher.nodes[1].pid)
        children = agent.children(recursive=True)
        two_nodes.losing_the_second_ends_its_case_and_no_other(launcher, agent.kill)
        assert gone([child.pid for child in children], within=3.0)


def test_an_agent_that_never_answers_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LATE", 1.0)
    with two() as launcher:
        world = launcher.world(2, JOBS, JOBS)
        agent = launcher.nodes[1].pid
        os.kill(agent, signal.SIGSTOP)
        try:
            outcomes = world.run(Job(f"{JOBS}:total", {}), 1.0)
        finally:
            os.kill(agent, signal.SIGKILL)
        assert isinstance(outcomes[1], Lost)
        assert outcomes[1].text == "node b was lost with rank 1: its agent does not answer"


def test_a_session_inside_a_job_confuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    with two() as launcher:
        two_nodes.one_all_reduce_spans_both(launcher)
        for outcome in run(launcher, "place"):
            assert isinstance(outcome, Done)
            assert outcome.value["SLURM_PROCID"] is None
        for outcome in run(launcher, "place", size=1):
            assert isinstance(outcome, Done)
            assert (outcome.value["GROUP_RANK"], outcome.value["MASTER_ADDR"]) == (None, "127.0.0.1")


def test_ranks_per_node_fill_a_node_first() -> None:
    with two(Cluster(nodes=2, limit=2, fill=True)) as launcher:
        found = [outcome.value["counts"] for outcome in run(launcher, "place") if isinstance(outcome, Done)]
        assert found == [(2,), (2,)]


def test_nodes_of_one_name_are_told_apart() -> None:
    with ClusterLauncher(Here("a"), 0, {}, Cluster(nodes=1)) as launcher:
        assert [node.name for node in launcher.nodes] == ["a"]
    starter = Here("b", "a")
    starter.names = ("a",) * 2
    with ClusterLauncher(starter, 0, {}, TWO) as launcher:
        assert [node.name for node in launcher.nodes] == ["a#1", "a#2"]


def test_a_stranger_is_not_let_in() -> None:
    with wire.listen() as listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1])) as stranger:
        stranger.sendall(b"\0\0\0\3abc")
        assert wire.accept(listener, b"key", 1.0) is None


def test_an_agent_without_the_key_ends_the_start_with_its_reason() -> None:
    with pytest.raises(LaunchError, match=r"a: .*AuthenticationError"):
        ClusterLauncher(Here("a", key=b"another"), 0, {}, Cluster(nodes=1))


def test_nodes_that_do_not_call_are_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ARRIVAL", 3.0)
    with pytest.raises(LaunchError, match=r"1 of 2 nodes have called this machine at \S+ \(a\); look for them"):
        ClusterLauncher(Here("a"), 0, {}, TWO)


def test_nodes_with_fewer_gpus_than_asked_are_refused() -> None:
    with pytest.raises(LaunchError, match="node a has 0 GPUs; use --gpus 0"):
        ClusterLauncher(Here("a"), 1, {}, Cluster(nodes=1))


def test_nothing_is_left_of_agents_whose_session_is_killed() -> None:
    session = """
import sys
from tests.launch.test_cluster import two
from tests.launch.worlds import JOBS
launcher = two()
world = launcher.world(2, JOBS, JOBS)
print(*(node.pid for node in launcher.nodes), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", session], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        agents = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        pids = [each.pid for agent in agents for each in (agent, *agent.children(recursive=True))]
        assert len(pids) == 6  # each has a server with a rank
        process.kill()
    assert gone(pids, within=5.0)
