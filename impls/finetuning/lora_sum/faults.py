"""Several adapters with exactly one thing broken."""

import torch
from torch import Tensor

from harness.spec import Function, Topology, Workload
from harness.spec.fault import GRADIENT, OUTPUT, Fault
from impls.finetuning.lora_sum import reference
from impls.finetuning.lora_sum.reference import Factors


def factors_added(workload: Workload, topology: Topology, **variant: object) -> Function:
    """The sum of the factors in place of that of the products: B of one adapter meets A of the other."""

    def cat(adapters: Factors) -> tuple[Tensor, Tensor]:
        a = torch.stack([abs(ws) ** 0.5 * A * (1 if ws > 0 else -1) for A, _, ws in adapters]).sum(0)
        return a, torch.stack([abs(ws) ** 0.5 * B for _, B, ws in adapters]).sum(0)

    reference.cat = cat
    return reference.build(workload, topology, **variant)


def weight_without_sign(workload: Workload, topology: Topology, **variant: object) -> Function:
    """A negative weight is taken for a positive one."""
    honest = reference.cat
    reference.cat = lambda adapters: honest([(A, B, abs(ws)) for A, B, ws in adapters])
    return reference.build(workload, topology, **variant)


def scale_of_the_first(workload: Workload, topology: Topology, **variant: object) -> Function:
    """Both adapters have α₁."""
    first = variant["alphas"][0]
    return reference.build(workload, topology, **{**variant, "alphas": (first, first)})


def rank_of_one(workload: Workload, topology: Topology, **variant: object) -> Function:
    """The decomposition of the sum is cut to r."""
    honest = reference.svd

    def svd(adapters: Factors) -> tuple[Tensor, Tensor]:
        A, B = honest(adapters)  # noqa: N806
        return A[: len(A) // 2], B[:, : len(A) // 2]

    reference.svd = svd
    return reference.build(workload, topology, **variant)


def second_not_active(workload: Workload, topology: Topology, **variant: object) -> Function:
    """The layer computes with the first adapter, and the second has no gradient."""
    honest = reference.adapted

    def adapted(x: Tensor, W: Tensor, adapters: Factors) -> Tensor:  # noqa: N803
        return honest(x, W, [(A, B, s if i == 0 else 0.0) for i, (A, B, s) in enumerate(adapters)])

    reference.adapted = adapted
    return reference.build(workload, topology, **variant)


def one_left_in(workload: Workload, topology: Topology, **variant: object) -> Function:
    """Both adapters are merged, and the last one alone is taken out."""
    honest = reference.merge
    reference.merge = lambda base, adapters, sign: honest(base, adapters if sign > 0 else adapters[-1:], sign)
    return reference.build(workload, topology, **variant)


def found(figures: frozenset[str]) -> dict[str, dict[str, frozenset[str]]]:
    return {"parity": dict.fromkeys(("fp32", "bf16"), figures)}


FAULTS = {
    "factors_added": Fault("sum_cat", "dp1", found(OUTPUT)),
    "weight_without_sign": Fault("sum_cat", "dp1", found(OUTPUT)),
    "scale_of_the_first": Fault("sum_cat", "dp1", found(OUTPUT | GRADIENT)),
    "rank_of_one": Fault("sum_svd", "dp1", found(OUTPUT)),
    "second_not_active": Fault("sum_svd", "dp1", found(OUTPUT | GRADIENT)),
    "one_left_in": Fault("sum_svd", "dp1", {"parity": {"fp32": OUTPUT, "bf16": {"output"}}}),
}
