"""Updates are replayed on the engine's own gradients: an optimizer's errors are found, and rounding is not one."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from harness.judge import optimizer
from harness.spec import Measurement, Workload

SHAPES = {"matrix": (48, 32), "gain": (32,)}
STEPS = 3
ADAMW = Workload(optimizer="adamw", lr=1e-3, weight_decay=0.1, eps=1e-6)
WORK = {
    "sgd": Workload(),
    "decayed sgd": Workload(weight_decay=0.1),
    "adamw": ADAMW,
    "clipped adamw": ADAMW.with_(max_grad_norm=0.5),
}

Engine = Callable[[Mapping[str, Tensor], Sequence[Mapping[str, Tensor]], Workload], list[Mapping[str, Tensor]]]


def drawn(dtype: torch.dtype) -> tuple[Mapping[str, Tensor], list[Mapping[str, Tensor]]]:
    """Weights before the first step, and gradients of each step in ``dtype``."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    steps = [
        {name: (0.1 * torch.randn(shape, generator=generator)).to(dtype) for name, shape in SHAPES.items()}
        for _ in range(STEPS)
    ]
    return weights, steps


def by_pytorch(fused: bool, dtype: torch.dtype = torch.float32) -> Engine:
    """PyTorch's optimizer on weights of a precision; gradients are clipped in their own precision."""

    def run(
        start: Mapping[str, Tensor], gradients: Sequence[Mapping[str, Tensor]], work: Workload
    ) -> list[Mapping[str, Tensor]]:
        weights = {name: w.clone().to(dtype).requires_grad_() for name, w in start.items()}
        if work.optimizer == "sgd":
            stepper: torch.optim.Optimizer = torch.optim.SGD(
                weights.values(), work.lr, weight_decay=work.weight_decay, fused=fused
            )
        else:
            stepper = torch.optim.AdamW(
                weights.values(), work.lr, work.betas, work.eps, weight_decay=work.weight_decay, fused=fused
            )
        found = []
        for step in gradients:
            scaled = [g.clone() for g in step.values()]
            if work.max_grad_norm:
                norm = torch.linalg.vector_norm(torch.stack([g.double().norm() for g in scaled]))
                scaled = [g * (work.max_grad_norm / (norm + 1e-6)).clamp(max=1.0).to(g.dtype) for g in scaled]
            for w, g in zip(weights.values(), scaled, strict=True):
                w.grad = g.to(dtype)
            stepper.step()
            found.append({name: w.detach().clone() for name, w in weights.items()})
        return found

    return run


def judged(engine: Engine, work: Workload, gradients: torch.dtype = torch.float32) -> Measurement:
    start, steps = drawn(gradients)
    return optimizer.judge(steps, [start, *engine(start, steps, work)], work)


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("gradients", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("fused", [False, True], ids=["loop", "fused"])
def test_pytorchs_optimizers_pass(name: str, gradients: torch.dtype, fused: bool) -> None:
    found = judged(by_pytorch(fused), WORK[name], gradients)
    assert found.verdict == "pass", found.reason
    assert found.value is not None
    assert found.value < found.bound / 2  # type: ignore[operator]


def without_decay(start, gradients, work):  # type: ignore[no-untyped-def]
    return by_pytorch(False)(start, gradients, work.with_(weight_decay=0.0))


def a_step_ahead(start, gradients, work):  # type: ignore[no-untyped-def]
    """The count of steps begins at one."""
    idle = [{name: torch.zeros_like(g) for name, g in gradients[0].items()}]
    return by_pytorch(False)(start, [*idle, *gradients], work.with_(weight_decay=0.0))[1:]


def no_masters(start, gradients, work):  # type: ignore[no-untyped-def]
    return by_pytorch(False, torch.bfloat16)(start, gradients, work)


def a_larger_third_step(start, gradients, work):  # type: ignore[no-untyped-def]
    """Right until the third step, whose gradient is scaled by 1.5."""
    larger = {name: 1.5 * g for name, g in gradients[2].items()}
    return by_pytorch(False)(start, [*gradients[:2], larger], work)


def a_weight_left_out(start, gradients, work):  # type: ignore[no-untyped-def]
    """The gain is never stepped."""
    found = by_pytorch(False)(start, gradients, work)
    return [{**step, "gain": start["gain"]} for step in found]


def a_rate_two_percent_too_large(start, gradients, work):  # type: ignore[no-untyped-def]
    return by_pytorch(False)(start, gradients, work.with_(lr=1.02 * work.lr))


FAULTS = (without_decay, a_step_ahead, no_masters, a_larger_third_step, a_weight_left_out, a_rate_two_percent_too_large)


@pytest.mark.parametrize("gradients", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_of_adamw_fails_at_twice_the_bound(fault: Engine, gradients: torch.dtype) -> None:
    found = judged(fault, ADAMW, gradients)
    assert found.verdict == "fail"
    assert found.value >= 2 * found.bound  # type: ignore[operator]


def test_the_step_and_tensor_that_are_wrong_are_named() -> None:
    assert "worst in step 3, " in judged(a_larger_third_step, ADAMW).reason
    assert ", gain" in judged(a_weight_left_out, ADAMW).reason


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"matrix": torch.ones(48, 32)}, "the gradient of gain is missing"),
        (
            {"matrix": torch.ones(48, 16), "gain": torch.ones(32)},
            "the gradient of matrix has shape (48, 16), not (48, 32)",
        ),
    ],
)
def test_gradients_that_cannot_be_replayed_are_a_failure_with_the_reason(
    changed: Mapping[str, Tensor], reason: str
) -> None:
    start, _ = drawn(torch.float32)
    found = optimizer.judge([changed] * STEPS, [start] * (STEPS + 1), ADAMW)
    assert (found.verdict, found.reason) == ("fail", reason)


def test_a_skipped_step_is_to_change_nothing_and_not_to_count() -> None:
    work = Workload(optimizer="adamw", lr=1e-3, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    start = {"w": torch.randn(64, generator=generator)}
    gradients = [{"w": torch.randn(64, generator=generator)} for _ in range(3)]
    gradients[1] = {"w": torch.zeros(64)}
    weight = torch.nn.Parameter(start["w"].clone())
    steps = torch.optim.AdamW([weight], lr=work.lr, betas=work.betas, eps=work.eps, weight_decay=work.weight_decay)
    weights = [start]
    for index, gradient in enumerate(gradients):
        weight.grad = gradient["w"]
        if index != 1:
            steps.step()
        weights.append({"w": weight.detach().clone()})
    assert optimizer.judge(gradients, weights, work, skipped=[1]).verdict == "pass"
    assert optimizer.judge(gradients, weights, work).verdict == "fail"
    moved = [*weights[:2], {"w": weights[2]["w"] * (1 + 1e-6)}, weights[3]]
    assert optimizer.judge(gradients, moved, work, skipped=[1]).verdict == "fail"
