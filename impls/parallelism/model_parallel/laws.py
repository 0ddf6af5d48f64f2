"""The promises of model parallelism by layers: a p-th of the states, and idle ranks."""

from harness.spec import Topology, Workload
from impls.parallelism.pipeline_parallel import laws as pipeline


def states(workload: Workload, topology: Topology) -> float | None:
    """Bytes of weights, gradients, masters and moments on the rank that holds most."""
    return pipeline.states(workload, topology, "gpipe")


def traffic(workload: Workload, topology: Topology) -> float | None:
    """Bytes that the busiest rank sends in a step: b·s·h elements forward and as many backward across each boundary,
    and the sum of a tied embedding's gradients."""
    return pipeline.traffic(workload, topology, "gpipe")


def bubble(workload: Workload, topology: Topology, times: object = None) -> float:
    """A rank waits (p − 1)/p of the time: only one of them works at a time."""
    return (topology.pp - 1) / topology.pp


def in_flight(workload: Workload, topology: Topology, times: object = None) -> float:
    """One micro-batch, whatever their number."""
    return 1.0
