"""Published figures of ZeRO-Offload against this session's."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.spec import Finding, ModelConfig, Topology, Workload, assessed
from impls.parallelism.zero_offload import laws

Records = Sequence[Mapping[str, Any]]
MIXED = {"engine": "reference", "variant": "offload_optimizer", "workload": "tiny_adamw", "dtype": "bf16"}
STATES = {"measure": "memory", "quantity": "states", "topology": "dp1"}
WITHIN = 0.05


def paper_13b(records: Records) -> Finding:
    """13 B parameters on 32 GB: the weights fit. Whether nothing else stays there takes a device to measure."""
    psi, card = 13e9, 32e9
    arithmetic = (
        f"16 × 13 B = {16 * psi / 1e9:.0f} GB of states; 32 GB hold those of {card / 16 / 1e9:.1f} B parameters. "
        f"2 × 13 B = {2 * psi / 1e9:.0f} GB of weights fit and leave {(card - 2 * psi) / 1e9:.0f} GB for activations "
        f"and buffers; 14 × 13 B = {14 * psi / 1e9:.0f} GB go to the host: possible, if nothing else stays"
    )
    figures = {"law": 2.0, "unit": "B a parameter on the device"}
    wanted = MIXED | STATES
    found = [r for r in records if all(r.get(name) == value for name, value in wanted.items())]
    if not found:
        reason = "this run has no memory figures of the reference in mixed precision at dp1"
        return assessed("paper_13b", "out of reach here", reason, arithmetic, **figures)
    parameters = ModelConfig().parameters
    each = found[0]["value"] / parameters
    if "cuda" not in found[0]["detail"]["meter"]:
        whole = found[0]["law"] / parameters
        reason = (
            "on CPU ranks the device's share cannot be told from the host's: together the reference holds "
            f"{each:.2f} B a parameter, {whole:.2f} by the formula"
        )
        return assessed("paper_13b", "formula only", reason, arithmetic, **figures)
    reason = f"the device holds {each:.2f} B a parameter between backward pass and step, at {parameters / 1e6:.1f} M"
    work = Workload(dtype="bf16", optimizer="adamw")
    promised = laws.device(work, Topology(), stage=2, states_on="host", weights_on="device") / parameters
    status = "reproduced" if each <= promised * (1 + WITHIN) else "contradicted"
    return assessed("paper_13b", status, reason, arithmetic, value=each, **figures)
