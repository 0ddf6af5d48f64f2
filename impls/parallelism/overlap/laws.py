"""What overlap promises: the memory and the bytes of tensor and sequence parallelism, in pieces that can be counted."""

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


def flights(
    workload: Workload,
    topology: Topology,
    technique: str,
    overlap: bool = True,
    times: Mapping[str, float] | None = None,
) -> float:
    """What a rank issues in a step, on L layers and for each micro-batch:

    Domino   2 sums, of the two halves, at 2L + 1 boundaries of stages, forward and backward
    rings    t−1 messages of 2L + 1 gathers and 2L scatters forward; backward the gathers have two rings each
    """
    layers, t = workload.model.num_hidden_layers, topology.tp
    once = 4 * (2 * layers + 1) if technique == "domino" else (t - 1) * (10 * layers + 3)
    return float(workload.micro_batches * once)
