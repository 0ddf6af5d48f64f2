"""Fine-tuning with exactly one thing broken. A fault that the optimizer hides is planted where it does not: AdamW does
not see the scale of a gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.spec import Batch, Curves
from harness.spec.fault import Fault
from impls.common.data import IGNORED
from impls.finetuning.finetuning_curves import reference, task
from impls.finetuning.finetuning_curves.grid import DESCENT, DIGITS
from impls.finetuning.qlora import reference as qlora
from impls.finetuning.sft.data import Example

PARTS = 8  # of a batch
SHARE, BACKWARD, PRODUCT = reference.share, reference.Adapted.backward, qlora.FrozenProduct.backward


def rate_half_a_per_cent_high(*arguments: Any, lr: float, **variant: Any) -> Curves:
    """Its runs end as well as the others."""
    return reference.run(*arguments, lr=1.005 * lr, **variant)


def divided_by_the_root_of_r(*arguments: Any, **variant: Any) -> Curves:
    """α/√r in place of α/r."""
    return reference.run(*arguments, rslora=True, **variant)


def no_warm_up(*arguments: Any, **variant: Any) -> Curves:
    """The learning rate is whole from the first step on."""
    reference.share = lambda step: 1.0
    return reference.run(*arguments, **variant)


def warm_up_a_step_late(*arguments: Any, **variant: Any) -> Curves:
    """The first two steps have a learning rate of zero."""
    reference.share = lambda step: SHARE(max(0, step - 1))
    return reference.run(*arguments, **variant)


def labels_shifted_again(*arguments: Any, **variant: Any) -> Curves:
    """The model learns the token after the next one."""

    def backward(model: reference.Adapted, conversations: Sequence[Example]) -> Tensor:
        inputs, labels = task.batch(conversations)
        later = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        found: Tensor = model.trainer.backward(Batch(inputs, later))
        return found

    reference.Adapted.backward = backward
    return reference.run(*arguments, **variant)


def gradients_of_adapters_halved(*arguments: Any, **variant: Any) -> Curves:
    """As where a sum over two ranks is divided twice."""

    def backward(model: reference.Adapted, conversations: Sequence[Example]) -> Tensor:
        loss = BACKWARD(model, conversations)
        torch._foreach_mul_([p.grad for p in model.trainer.weights.values()], 0.5)
        return loss

    reference.Adapted.backward = backward
    return reference.run(*arguments, **variant)


def gradient_of_a_part_lost(*arguments: Any, **variant: Any) -> Curves:
    """One micro-batch of eight counts in the loss alone."""

    def backward(model: reference.Adapted, conversations: Sequence[Example]) -> Tensor:
        weights = model.trainer.weights.values()
        BACKWARD(model, conversations[: len(conversations) // PARTS])
        lost = [p.grad.clone() for p in weights]
        model.optimizer.zero_grad()
        loss = BACKWARD(model, conversations)
        torch._foreach_sub_([p.grad for p in weights], lost, alpha=1 / PARTS)
        return loss

    reference.Adapted.backward = backward
    return reference.run(*arguments, **variant)


def gradient_ends_at_the_base(*arguments: Any, **variant: Any) -> Curves:
    """The product with four-bit weights has no gradient, so that only adapters pass one on."""

    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        gradient, _ = PRODUCT(ctx, slope)
        return torch.zeros_like(gradient), None

    qlora.FrozenProduct.backward = staticmethod(backward)
    return reference.run(*arguments, **variant)


BIASED = {"learning": {"fp32": {"residuals"}}}
WORSE = {"learning": {"fp32": {"score", "residuals"}}}
FAULTS = {
    "rate_half_a_per_cent_high": Fault("curve_sft", "dp1", BIASED, workload=DIGITS),
    "warm_up_a_step_late": Fault("curve_qlora", "dp1", BIASED, workload=DIGITS),
    "no_warm_up": Fault("curve_ia3", "dp1", BIASED, workload=DIGITS),
    "divided_by_the_root_of_r": Fault("curve_lora", "dp1", BIASED, workload=DIGITS),
    "labels_shifted_again": Fault("curve_lora", "dp1", WORSE, workload=DIGITS),
    "gradient_ends_at_the_base": Fault("curve_qlora", "dp1", WORSE, workload=DIGITS),
    "gradients_of_adapters_halved": Fault("curve_lora_sgd", "dp1", WORSE, workload=DESCENT),
    "gradient_of_a_part_lost": Fault("curve_lora_sgd", "dp1", BIASED, workload=DESCENT),
}
