"""Initial adapters with exactly one thing broken."""

import torch
from torch import Tensor

from harness.spec import Function, Topology, Workload
from harness.spec.fault import OUTPUT, Fault
from impls.finetuning.lora_init import reference


def smallest_values(workload: Workload, topology: Topology, **variant: float) -> Function:
    """PiSSA takes the part with the smallest singular values."""

    def pissa(W: Tensor, rank: int, s: float) -> tuple[Tensor, Tensor]:  # noqa: N803
        U, values, Vt = torch.linalg.svd(W, full_matrices=False)  # noqa: N806
        half = (values[-rank:] / s).sqrt()
        return half[:, None] * Vt[-rank:], U[:, -rank:] * half

    reference.pissa = pissa
    return reference.build(workload, topology, **variant)


def shared_unevenly(workload: Workload, topology: Topology, **variant: float) -> Function:
    """All of Σ is in B."""
    honest = reference.pissa

    def pissa(W: Tensor, rank: int, s: float) -> tuple[Tensor, Tensor]:  # noqa: N803
        A, B = honest(W, rank, s)  # noqa: N806
        half = A.norm(dim=1)
        return A / half[:, None], B * half

    reference.pissa = pissa
    return reference.build(workload, topology, **variant)


def base_kept_whole(workload: Workload, topology: Topology, **variant: float) -> Function:
    """The part is not taken out of the frozen matrix."""
    build = reference.build(workload, topology, **variant)

    def divide(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        found = build(inputs)
        return {**found, "rest": inputs["W"], "y": found["y"] + inputs["x"] @ found["part"].to(inputs["x"].dtype).T}

    return divide


def scale_forgotten(workload: Workload, topology: Topology, **variant: float) -> Function:
    """B A is taken out in place of s B A."""
    build = reference.build(workload, topology, **variant)

    def divide(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        found = build(inputs)
        s = variant["alpha"] / variant["rank"]
        rest = (inputs["W"].to(found["part"].dtype) - found["part"] / s).to(inputs["W"].dtype)
        return {**found, "rest": rest}

    return divide


FOUND = {"parity": dict.fromkeys(("fp32", "bf16"), OUTPUT)}
FAULTS = {
    "smallest_values": Fault("pissa", "dp1", FOUND),
    "shared_unevenly": Fault("pissa", "dp1", FOUND),
    "base_kept_whole": Fault("olora", "dp1", FOUND),
    "scale_forgotten": Fault("olora", "dp1", FOUND),
}
