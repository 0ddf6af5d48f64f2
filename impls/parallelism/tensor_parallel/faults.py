"""Tensor parallelism with exactly one thing broken."""

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, UPDATE, Fault
from impls.parallelism.tensor_parallel import reference


def no_sum_over_heads(workload: Workload, topology: Topology) -> Trainer:
    """The gains of the query and key norms see this rank's heads only: an all-reduce is missing."""
    reference.sum_flat = lambda tensors, group: None
    return reference.build(workload, topology)


def blocks_summed_in_float32(workload: Workload, topology: Topology) -> Trainer:
    """What the blocks of all ranks add up to is widened before it is sent, not after it: twice the bytes."""
    reduce = reference.reduce
    reference.reduce = lambda partial, group: reduce(partial.float(), group).to(partial.dtype)
    return reference.build(workload, topology)


FAULTS = {
    "no_sum_over_heads": Fault(
        "tp",
        "tp2",
        {"parity": {"fp32": GRADIENT | UPDATE, "bf16": {"gradient"}}, "traffic": {"fp32": {"bytes"}}},
        where="_norm.weight",
    ),
    "blocks_summed_in_float32": Fault("tp", "tp2", {"traffic": {"bf16": {"bytes"}}}),
}
