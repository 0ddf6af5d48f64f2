"""Published figures of ZeRO-Offload compared with this session's."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.spec import Measurement, assessed

Records = Sequence[Mapping[str, Any]]
MIXED = {"engine": "reference", "variant": "offload_optimizer", "workload": "blocks", "dtype": "bf16"}
STATES = {"measure": "memory", "quantity": "states", "topology": "dp1"}
WHOLE, DEVICE = 16, 2  # bytes per parameter: device and host together, and device alone
WITHIN = 0.05


def paper_13b(records: Records) -> Measurement:
    """13 B parameters on 32 GB: the weights fit. Only a device can show whether anything else stays there."""
    psi, card = 13e9, 32e9
    whole, weights = WHOLE * psi, DEVICE * psi
    arithmetic = (
        f"16 × 13 B = {whole / 1e9:.0f} GB of states; 32 GB hold those of {card / WHOLE / 1e9:.1f} B parameters. "
        f"2 × 13 B = {weights / 1e9:.0f} GB of weights fit and leave {(card - weights) / 1e9:.0f} GB for activations "
        f"and buffers; {(whole - weights) / 1e9:.0f} GB go to the host: possible if nothing else stays on the device"
    )
    figures = {"law": float(DEVICE), "unit": "B a parameter on the device"}
    wanted = MIXED | STATES
    found = [r for r in records if all(r.get(name) == value for name, value in wanted.items())]
    if not found:
        reason = "this run has no memory figures of the reference in mixed precision at dp1"
        return assessed("paper_13b", "out of reach here", reason, arithmetic, **figures)
    parameters = found[0]["law"] / WHOLE
    each = found[0]["value"] / parameters
    if "cuda" not in found[0]["detail"]["meter"]:
        reason = (
            "on CPU ranks device and host share one memory: together the reference holds "
            f"{each:.2f} B per parameter, {WHOLE} by the formula"
        )
        return assessed("paper_13b", "formula only", reason, arithmetic, **figures)
    status = "reproduced" if each <= DEVICE * (1 + WITHIN) else "contradicted"
    reason = f"the device holds {each:.2f} B per parameter between backward pass and step, at {parameters / 1e6:.1f} M"
    return assessed("paper_13b", status, reason, arithmetic, value=each, **figures)
