"""Where a run goes on that changes its mesh."""

from harness.spec import Topology, Unsupported


def other(topology: Topology, how: str) -> Topology:
    """A mesh of as many ranks: ``turned`` (dp → tp → pp → dp), or ``unpiped``, the stages being data-parallel ranks
    from then on. Raises Unsupported where that is the same mesh."""
    found = {
        "turned": Topology(dp=topology.pp, tp=topology.dp, pp=topology.tp, cp=topology.cp),
        "unpiped": Topology(dp=topology.dp * topology.pp, tp=topology.tp, cp=topology.cp),
    }[how]
    if found == topology:
        raise Unsupported(f"{topology} {how} is {topology} again")
    return found


def meshes(topology: Topology, how: str) -> tuple[Topology, ...]:
    """Those that a run is on; without a ``how`` it stays where it is."""
    return (topology, other(topology, how)) if how else (topology,)
