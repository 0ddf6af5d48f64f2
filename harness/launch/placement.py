"""The nodes of a session, and the place of a world's ranks on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class LaunchError(RuntimeError):
    """The nodes cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Cluster:
    """``nodes``: how many; ``hosts``: their names, if they are known; ``limit``: the most ranks of a world on one node;
    ``fill``: whether a node takes that many before the next gets any, else all nodes take equal shares; ``head``: this
    machine's address for the nodes, found if empty; ``remote_shell``: the command that runs another on a host;
    ``slurm``: options for srun."""

    nodes: int = 1
    hosts: tuple[str, ...] = ()
    limit: int = 8
    fill: bool = False
    head: str = ""
    remote_shell: str = "ssh -o BatchMode=yes"
    slurm: str = ""


@dataclass(frozen=True)
class Part:
    """The ranks of a world on one of its nodes. ``counts``: ranks on each node, in blocks of neighbours; ``node``: this
    one; ``address``: of the first node; ``port``: for engines (MASTER_PORT); ``store``: port of the store through which
    the ranks meet, 0 on a single node, whose ranks use a file; ``interface``: of this node, towards the others."""

    counts: tuple[int, ...]
    node: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    store: int = 0
    interface: str = "lo"

    @property
    def size(self) -> int:
        return sum(self.counts)

    @property
    def ranks(self) -> range:
        first = sum(self.counts[: self.node])
        return range(first, first + self.counts[self.node])

    def environment(self) -> dict[str, str]:
        """The variables that all ranks of this part share."""
        here = str(self.counts[self.node])
        found = {
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": here,
            "LOCAL_SIZE": here,
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            "PLUMBLINE_COUNTS": ",".join(map(str, self.counts)),
            "PLUMBLINE_STORE": str(self.store),
        }
        if len(self.counts) > 1:
            found |= {"GROUP_RANK": str(self.node), "NODE_RANK": str(self.node), "GLOO_SOCKET_IFNAME": self.interface}
        return found


def nodes_of(counts: tuple[int, ...]) -> tuple[int, ...]:
    """The node of each rank."""
    return tuple(node for node, count in enumerate(counts) for _ in range(count))


def blocks(size: int, nodes: int, limit: int, fill: bool) -> tuple[int, ...]:
    """The ranks on each node, neighbours together; empty if ``nodes`` of at most ``limit`` ranks cannot take them."""
    if size > nodes * limit:
        return ()
    if fill:
        return tuple(min(limit, size - first) for first in range(0, size, limit))
    share, more = divmod(size, nodes)
    return tuple(count for node in range(nodes) if (count := share + (node < more)))


def count(launcher: str, hosts: Sequence[str], asked: int | None, environment: Mapping[str, str]) -> int:
    """The number of nodes of a session. LaunchError if nothing says it."""
    found = 1 if launcher == "local" else asked or len(hosts)
    if not found and launcher in ("torchrun", "slurm"):
        found = allocated(environment)
    if not found:
        ways = {
            "torchrun": "give the nodes with --hosts A,B, or start inside a Slurm allocation",
            "slurm": "give their number with --nodes N, or start inside a Slurm allocation",
            "ray": "give their number with --nodes N",
        }
        raise LaunchError(f"the nodes are not known: {ways[launcher]}")
    return found


def allocated(environment: Mapping[str, str]) -> int:
    """The number of nodes of the Slurm allocation that this process is in; 0 outside of one."""
    return int(environment.get("SLURM_JOB_NUM_NODES") or environment.get("SLURM_NNODES") or 0)
