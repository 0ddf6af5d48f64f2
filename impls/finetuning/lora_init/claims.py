"""LoftQ's error, by the reference on normally distributed weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from harness.spec import Measurement, assessed
from impls.finetuning.lora_init.reference import loftq

Records = Sequence[Mapping[str, Any]]
RANK, STEPS = 8, 5


def falls(records: Records) -> Measurement:
    """‖W − Q − B A‖/‖W − q(W)‖ after each step."""
    W = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))  # noqa: N806
    errors = loftq(W, RANK, 1.0, STEPS)[3]
    shares = (errors / errors[0]).tolist()
    arithmetic = ", ".join(f"T = {t}: {share:.3f}" for t, share in enumerate(shares))
    reason = f"error over that of rounding alone, r = {RANK}, 128 · 128 normally distributed weights: {arithmetic}"
    status = "reproduced" if shares[-1] < shares[1] < 1 else "contradicted"
    return assessed("loftq_error", status, reason, arithmetic, value=shares[-1], law=shares[1], direction="lower")
