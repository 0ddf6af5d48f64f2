"""Adapters under tensor parallelism with exactly one thing broken."""

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor

from harness.spec import Function, Topology, Workload
from harness.spec.fault import GRADIENT, OUTPUT, Fault
from impls.finetuning.lora_parallel import reference

Operator = Callable[[Tensor, dist.ProcessGroup], Tensor]


def only_cut(honest: Operator, shape: tuple[int, int]) -> Operator:
    """An operator that leaves tensors of this shape alone."""
    return lambda x, group: x if x.shape == shape else honest(x, group)


def gradient_of_a_not_summed(workload: Workload, topology: Topology, rank: int, **variant: float) -> Function:
    """Each rank steps A of the column-parallel layer by its own part."""
    reference.f = only_cut(reference.f, (rank, workload.model.hidden_size))
    return reference.build(workload, topology, rank=rank, **variant)


def gradient_of_b_not_summed(workload: Workload, topology: Topology, rank: int, **variant: float) -> Function:
    """Each rank steps B of the row-parallel layer by its own part."""
    reference.f = only_cut(reference.f, (workload.model.hidden_size, rank))
    return reference.build(workload, topology, rank=rank, **variant)


def added_after_the_sum(workload: Workload, topology: Topology, **variant: float) -> Function:
    """The row-parallel adapter's part comes behind g, so that each rank has its own output."""

    def row(y: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float, group: object) -> Tensor:  # noqa: N803
        low = s * (y @ A.T) @ reference.f(B, group).T
        return reference.g(y @ W.T, group) + low

    reference.row = row
    return reference.build(workload, topology, **variant)


def added_on_every_rank(workload: Workload, topology: Topology, **variant: float) -> Function:
    """A whole low-rank result goes into the sum, t times too large."""

    def row(y: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float, group: object) -> Tensor:  # noqa: N803
        low = reference.g(y @ A.T, group)
        return reference.g(y @ W.T + s * low @ B.T, group)

    reference.row_low = row
    return reference.build(workload, topology, **variant)


def input_summed_twice(workload: Workload, topology: Topology, **variant: float) -> Function:
    """f stands before both products of the column-parallel layer, though the low-rank gradient is already whole."""

    def column(x: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float, group: object) -> Tensor:  # noqa: N803
        x = reference.f(x, group)
        return x @ W.T + s * reference.f(x @ A.T, group) @ B.T

    reference.column_low = column
    return reference.build(workload, topology, **variant)


def found(figures: frozenset[str]) -> dict[str, dict[str, frozenset[str]]]:
    """In bfloat16 a norm alone: slopes do not see a part of one gradient."""
    return {"parity": {"fp32": figures, "bf16": figures - {"gradient slope"}}}


FAULTS = {
    "gradient_of_a_not_summed": Fault("lora_tp", "tp2", found(GRADIENT)),
    "gradient_of_b_not_summed": Fault("lora_tp", "tp2", found(GRADIENT)),
    "added_after_the_sum": Fault("lora_tp", "tp2", found(OUTPUT)),
    "added_on_every_rank": Fault("lora_tp_low", "tp2", found(OUTPUT)),
    "input_summed_twice": Fault("lora_tp_low", "tp2", found(GRADIENT)),
}
