"""Worlds over two hosts, which here are network namespaces, by torchrun."""

from collections.abc import Iterator

import psutil
import pytest

from harness.launch import torchrun
from harness.launch.cluster import ClusterLauncher
from harness.launch.placement import Cluster, LaunchError
from tests.launch import namespaces, two_nodes
from tests.launch.namespaces import SHELL, ip
from tests.launch.worlds import gone

ABSENT = namespaces.absent()
needs_namespaces = pytest.mark.skipif(bool(ABSENT), reason=ABSENT or "they are here")


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """The test's thread is on the first of them."""
    with namespaces.joined() as names, namespaces.inside(names[0]):
        yield names


@pytest.fixture
def launcher(hosts: tuple[str, str]) -> Iterator[ClusterLauncher]:
    with torchrun.launch(0, {}, Cluster(nodes=2, hosts=hosts, limit=2, remote_shell=SHELL)) as launcher:
        assert [node.name for node in launcher.nodes] == list(hosts)
        assert [node.interface for node in launcher.nodes] == ["plumb0", "plumb1"]
        yield launcher


@needs_namespaces
def test_an_all_reduce_and_parity_span_two_hosts(launcher: ClusterLauncher) -> None:
    two_nodes.one_all_reduce_spans_both(launcher)
    two_nodes.parity_passes_over_both(launcher)


@needs_namespaces
def test_losing_a_host_ends_its_case_and_no_other(launcher: ClusterLauncher) -> None:
    pids = [int(pid) for pid in ip("netns", "pids", launcher.nodes[1].name).split()]
    assert launcher.nodes[1].pid in pids

    def lose() -> None:
        for pid in pids:
            psutil.Process(pid).kill()

    two_nodes.losing_the_second_ends_its_case_and_no_other(launcher, lose)


@needs_namespaces
def test_a_host_whose_network_is_gone_is_lost_though_nothing_says_so(launcher: ClusterLauncher) -> None:
    name, agent = launcher.nodes[1].name, launcher.nodes[1].pid

    def cut() -> None:
        ip("-n", name, "link", "set", "plumb1", "down")

    two_nodes.losing_the_second_ends_its_case_and_no_other(launcher, cut)
    assert gone([agent], within=30.0)  # it has lost the session


@needs_namespaces
def test_a_host_that_cannot_be_reached_is_told_in_the_shells_own_words(hosts: tuple[str, str]) -> None:
    wrong, before = (hosts[0], "plumb-nowhere"), psutil.Process().children(recursive=True)
    with pytest.raises(LaunchError, match=r"plumb-nowhere: .*No such file.*check that `ip netns exec plumb-nowhere"):
        torchrun.launch(0, {}, Cluster(nodes=2, hosts=wrong, limit=2, remote_shell=SHELL))
    assert psutil.Process().children(recursive=True) == before


def test_without_hosts_or_an_allocation_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match="ssh is not on PATH; install it, or give another with --remote-shell"):
        torchrun.launch(0, {}, Cluster(nodes=1, hosts=("a",)))
    with pytest.raises(LaunchError, match="srun is not on PATH; give the nodes with --hosts A,B"):
        torchrun.launch(0, {}, Cluster(nodes=2))
