"""What overlap promises: the memory and the bytes of tensor and sequence parallelism, and communication hidden."""

from collections.abc import Mapping

from harness.spec import Topology, Workload
from impls.parallelism.sequence_parallel import laws as sequence_parallel
from impls.parallelism.tensor_parallel import laws as tensor_parallel


def states(workload: Workload, topology: Topology, **variant: object) -> float:
    """Bytes: those of tensor parallelism."""
    return tensor_parallel.states(workload, topology)


def activations(workload: Workload, topology: Topology, technique: str, overlap: bool = True) -> float:
    """Bytes that autograd saves: halves and tiles together keep what the whole keeps."""
    return sequence_parallel.activations(workload, topology, sequence_parallel=technique == "async_tp")


def traffic(workload: Workload, topology: Topology, technique: str, overlap: bool = True) -> float | None:
    """Bytes that a rank sends in a step. Domino: the all-reduces of tensor parallelism, each in two halves. A ring: t−1
    messages of ⌈s/t⌉·b·h elements for what a gather or a reduce-scatter of sequence parallelism sends."""
    return sequence_parallel.traffic(workload, topology, sequence_parallel=technique == "async_tp")


def hidden(
    workload: Workload,
    topology: Topology,
    technique: str,
    overlap: bool = True,
    times: Mapping[str, float] | None = None,
) -> float:
    """The largest share of the communication's time in which the same rank can be computing: all of it, or none where
    it waits for all that it issues."""
    return float(overlap and topology.tp > 1)
