"""Which meshes there are for what, and where a run goes on that changes its mesh."""

from dataclasses import replace
from math import gcd

from harness.spec import MoeConfig, Topology, Unsupported, Workload


def check(workload: Workload, topology: Topology, sequence_parallel: bool) -> None:
    """Unsupported, with the reason, where the reference cannot run this."""
    if topology.ep > 1 and not isinstance(workload.model, MoeConfig):
        raise Unsupported(f"ep {topology.ep} without experts: the model is dense")
    if sequence_parallel and topology.tp == 1:
        raise Unsupported("there is no sequence parallelism without tensor parallelism")


def other(topology: Topology, how: str) -> Topology:
    """A mesh of as many ranks: ``turned`` (dp → tp → pp → dp), or ``unpiped``, the stages being data-parallel ranks
    from then on; experts are on as many of these as before, or as go into them. Raises Unsupported where that is the
    same mesh."""
    found = {
        "turned": Topology(dp=topology.pp, tp=topology.dp, pp=topology.tp, cp=topology.cp),
        "unpiped": Topology(dp=topology.dp * topology.pp, tp=topology.tp, cp=topology.cp),
    }[how]
    found = replace(found, ep=gcd(topology.ep, found.dp))
    if found == topology:
        raise Unsupported(f"{topology} {how} is {topology} again")
    return found


def meshes(topology: Topology, how: str) -> tuple[Topology, ...]:
    """Those that a run is on; without a ``how`` it stays where it is."""
    return (topology, other(topology, how)) if how else (topology,)
