"""Published figures of sequence parallelism and selective recomputation compared with this session's."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.spec import Measurement, assessed, measured

Records = Sequence[Mapping[str, Any]]
S, T = 2048, 8  # sequence and tensor-parallel ranks of every model in table 3
MODELS = {"22B": (64, 6144), "175B": (96, 12288), "530B": (128, 20480), "1T": (160, 25600)}  # heads a, hidden size h
WORK = {"engine": "reference", "workload": "tiny", "dtype": "fp32", "quantity": "activations"}


def activation_memory(records: Records) -> Measurement:
    """÷ 5: a layer of tensor parallelism, compared with one with sequence parallelism whose attention saves no
    scores."""
    factors = {n: (10 + 24 / T + 5 * a * S / (h * T)) / (34 / T) for n, (a, h) in MODELS.items()}
    arithmetic = (
        f"table 2 at t {T}, s {S}, (10 + 24/t + 5as/ht) ÷ (34/t): "
        + ", ".join(f"{name} ÷ {factor:.1f}" for name, factor in factors.items())
        + ": holds"
    )
    reason = "selective recomputation is measured in activation_checkpointing; the models need at least 8 GPUs of 80 GB"
    for t in (2, 4):
        kept = [measured(records, variant=variant, topology=f"tp{t}", **WORK) for variant in ("sp_off", "sp")]
        if all(kept):
            reason += (
                f"; sequence parallelism alone: ÷ {kept[0][0] / kept[1][0]:.2f} at tp{t}, with attention that "
                f"saves no scores, where the paper's layer has (10 + 24/t) ÷ (34/t) = {(10 + 24 / t) / (34 / t):.2f}"
            )
    return assessed("activation_memory", "formula only", reason, arithmetic, value=min(factors.values()), law=5.0)


def recomputation_time(records: Records) -> Measurement:
    """Over 90 %: the part of a whole forward pass that selective recomputation repeats, QKᵀ and its product with V."""
    recovered = {name: 1 - S / (6 * h + S) for name, (_, h) in MODELS.items()}
    arithmetic = (
        "attention's two products are 4bs²h of a layer's 24bsh² + 4bs²h operations, and "
        "1 − s/(6h + s) of a full recomputation is saved: "
        + ", ".join(f"{name} {share:.0%}" for name, share in recovered.items())
        + ": holds in operations"
    )
    reason = "the figure is a time on 8 GPUs; activation_checkpointing counts the operations"
    figures = {"law": 0.9, "unit": "share of the recomputation's time"}
    return assessed("recomputation_time", "out of reach here", reason, arithmetic, **figures)
