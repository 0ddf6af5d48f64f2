"""The claims about every launcher of a cluster, on two nodes of at most two ranks each."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from harness.launch.cluster import ClusterLauncher
from harness.launch.outcome import Done, Job, Lost, describe
from harness.launch.placement import Cluster
from harness.spec import Case, Topology
from harness.spec.named import load
from impls.parallelism.zero import CARD
from tests import labs
from tests.launch.worlds import JOBS, LONG, run

TWO = Cluster(nodes=2, limit=2)


def one_all_reduce_spans_both(launcher: ClusterLauncher) -> None:
    assert run(launcher, "total") == (Done(0, 3.0), Done(1, 3.0))
    assert run(launcher, "total", size=4) == tuple(Done(rank, 10.0) for rank in range(4))
    found = [outcome.value for outcome in run(launcher, "place", size=4) if isinstance(outcome, Done)]
    assert [place["counts"] for place in found] == [(2, 2)] * 4
    assert [(place["GROUP_RANK"], place["LOCAL_RANK"]) for place in found] == [
        ("0", "0"),
        ("0", "1"),
        ("1", "0"),
        ("1", "1"),
    ]
    assert {place["MASTER_ADDR"] for place in found} == {launcher.nodes[0].address}
    assert [place["GLOO_SOCKET_IFNAME"] for place in found[::2]] == [node.interface for node in launcher.nodes]
    assert len({place["parent"] for place in found}) == 2  # the nodes' fork servers


def parity_passes_over_both(launcher: ClusterLauncher) -> None:
    case = Case(CARD.name, "zero3", "reference", Topology(dp=2), load("tiny"))
    lab = labs.make({CARD.name: CARD}, launcher=launcher)
    measurements = lab.measure("parity", case)
    assert {measurement.verdict for measurement in measurements} == {"pass"}, measurements


def losing_the_second_ends_its_case_and_no_other(launcher: ClusterLauncher, lose: Callable[[], None]) -> None:
    """``lose`` takes the second node away."""
    first, second = launcher.nodes
    world = launcher.world(2, JOBS, JOBS)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(world.run, Job(f"{JOBS}:one_never_enters", {}), LONG)
        lose()
        outcomes = running.result()
    assert isinstance(outcomes[1], Lost)
    assert outcomes[1].message.startswith(f"node {second.name} was lost with rank 1: its agent ")
    assert describe(outcomes).startswith(f"{outcomes[1].message}\n\n")
    assert run(launcher, "total") == (Done(0, 3.0), Done(1, 3.0))  # on the other one
    larger = Case(CARD.name, "zero3", "reference", Topology(dp=4), load("tiny"))
    (skipped,) = labs.make({CARD.name: CARD}, launcher=launcher).measure("parity", larger)
    assert skipped.verdict == "skipped"
    left = f"dp4: 4 ranks do not fit: {first.name} is left, for 2 ranks; node {second.name} was lost: its agent "
    assert skipped.reason.startswith(left)
