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


def adapter_not_taken_out(workload: Workload, topology: Topology, **variant: float) -> Function:
    """Every step rounds W itself, so that steps change nothing."""

    def loftq(W: Tensor, rank: int, s: float, steps: int) -> tuple[Tensor, ...]:  # noqa: N803
        A, B, Q, errors = honest(W, rank, s, 1)  # noqa: N806
        return A, B, Q, torch.cat([errors, errors[1:].expand(steps - 1)])

    honest, reference.loftq = reference.loftq, loftq
    return reference.build(workload, topology, **variant)


def one_step_short(workload: Workload, topology: Topology, **variant: float) -> Function:
    """The last step rounds and does not decompose: Q and the adapter are of different steps."""

    def loftq(W: Tensor, rank: int, s: float, steps: int) -> tuple[Tensor, ...]:  # noqa: N803
        A, B, _, errors = honest(W, rank, s, steps)  # noqa: N806
        Q = reference.four_bits(W - s * B @ A)  # noqa: N806
        return A, B, Q, torch.cat([errors[:-1], (W - Q - s * B @ A).norm().view(1)])

    honest, reference.loftq = reference.loftq, loftq
    return reference.build(workload, topology, **variant)


def scale_not_divided(workload: Workload, topology: Topology, **variant: float) -> Function:
    """B A alone is what rounding lost, and the layer adds s B A."""
    honest = reference.pissa
    reference.pissa = lambda whole, rank, s: honest(whole, rank, 1.0)
    return reference.build(workload, topology, **variant)


FOUND = {"parity": dict.fromkeys(("fp32", "bf16"), OUTPUT)}
SINGLE = {"parity": {"fp32": OUTPUT}}
FAULTS = {
    "smallest_values": Fault("pissa", "dp1", FOUND),
    "shared_unevenly": Fault("pissa", "dp1", FOUND),
    "base_kept_whole": Fault("olora", "dp1", FOUND),
    "scale_forgotten": Fault("olora", "dp1", FOUND),
    "adapter_not_taken_out": Fault("loftq_5", "dp1", SINGLE),
    "one_step_short": Fault("loftq_5", "dp1", SINGLE),
    "scale_not_divided": Fault("loftq_scaled", "dp1", SINGLE),
}
