"""The promises of accumulation over k micro-batches: a k-th of the activations, and of k batches' traffic."""

from harness.spec import Topology, Workload
from impls.common.activations import saved
from impls.parallelism.data_parallel import laws


def activations(workload: Workload, topology: Topology, **variant: object) -> float:
    """Bytes saved for the backward pass of one micro-batch, b/(N·k) sequences."""
    return saved(workload, workload.tokens // (topology.dp * workload.micro_batches))


def traffic(workload: Workload, topology: Topology, **variant: object) -> float | None:
    """Bytes a rank sends in a step: one ring all-reduce of the gradients, however many micro-batches there are."""
    return laws.traffic(workload, topology)
