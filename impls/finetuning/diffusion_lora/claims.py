"""The published number of adapters' parameters of Stable Diffusion, by the arithmetic of its UNet's shapes."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.spec import Measurement, assessed
from impls.finetuning.diffusion_lora.blocks import STABLE_DIFFUSION
from impls.finetuning.diffusion_lora.shapes import TARGETS, frozen, targets, trained

CLAIMED = 0.84e6


def share(records: Sequence[Mapping[str, Any]]) -> Measurement:
    """Σ r (i + o) over the adapted matrices of version 1.5."""
    whole, three = frozen(STABLE_DIFFUSION), TARGETS[:-1]
    found = trained(STABLE_DIFFUSION, 16, three)
    count = len(list(targets(STABLE_DIFFUSION, three)))
    arithmetic = f"16 · Σ (i + o) over {count} matrices of q, k and v = {found:,} of {whole:,}: {found / whole:.2%}"
    nearest = trained(STABLE_DIFFUSION, 4)
    reason = (
        f"{arithmetic}; the published {CLAIMED / 1e6:.2f} M are near those of rank 4 with the output projection, "
        f"{nearest:,}: {nearest / whole:.2%}"
    )
    return assessed("diffusion_share", "contradicted", reason, arithmetic, value=float(found), law=CLAIMED)
