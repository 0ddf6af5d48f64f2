"""Where a run goes on that changes its mesh."""

from harness.spec import Topology, Unsupported


def other(topology: Topology) -> Topology:
    """A mesh of as many ranks: the sizes go round (dp → tp → pp → dp), or where they are equal pipelines turn into
    data-parallel ranks. Raises Unsupported where that is the same mesh."""
    found = Topology(dp=topology.pp, tp=topology.dp, pp=topology.tp)
    if found == topology:
        found = Topology(dp=topology.dp * topology.pp, tp=topology.tp)
    if found == topology:
        raise Unsupported(f"{topology} has no axis that could be exchanged for another")
    return found
