"""Published figures of tensor parallelism compared with this session's."""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

from harness.spec import Measurement, assessed, measured

Records = Sequence[Mapping[str, Any]]
ADAM = {"engine": "reference", "workload": "tiny_adamw", "dtype": "fp32", "measure": "memory"}
WITHIN = 0.05  # of a share: two shares closer than this count as equal


def practice_memory(records: Records) -> Measurement:
    """12 GB → 7 GB: the share saved at TP 2, of the peak of a step."""
    parameters, published = 12 * 12 * 768**2 + 2 * 30_000 * 768, 1 - 7 / 12
    arithmetic = (
        f"12 · 12 h² + 2 V h = {parameters / 1e6:.0f} M parameters, × 16 B = {parameters * 16 / 2**30:.2f} GiB of "
        "states: most of the 12 GB must be activations and logits, whose batch and sequence are not published; "
        f"5 / 12 = {published:.1%} holds, and 50 % is the most that t = 2 can save"
    )
    figures = {"law": published, "unit": "share saved"}
    peaks = [measured(records, quantity="peak", topology=topology, **ADAM) for topology in ("dp1", "tp2")]
    states = [measured(records, quantity="states", topology=topology, **ADAM) for topology in ("dp1", "tp2")]
    if not all(peaks + states):
        reason = "this run has no memory figures of the reference with AdamW at dp1 and tp2"
        return assessed("practice_memory", "out of reach here", reason, arithmetic, **figures)
    saved, of_states = (1 - two[0] / one[0] for one, two in (peaks, states))
    reason = f"the reference's peak falls by {saved:.1%} at tp2, its model states by {of_states:.1%}"
    if abs(saved - published) <= WITHIN:
        return assessed("practice_memory", "reproduced", reason, arithmetic, value=saved, **figures)
    reason += "; the share depends on how much of the peak is activations, so it would take the practice's own batch"
    return assessed("practice_memory", "out of reach here", reason, arithmetic, value=saved, **figures)


def practice_loss(records: Records) -> Measurement:
    """10.31 → 1.58: the start is the logarithm of the vocabulary; a measurement shows that tp does not change the
    loss."""
    start = log(30_000)
    arithmetic = f"ln 30,000 = {start:.2f}: an untrained model's loss, so the start holds; 1.58 depends on their data"
    figures = {"law": 10.31, "value": start, "unit": "loss at the start"}
    work = {"engine": "reference", "measure": "parity", "quantity": "loss", "dtype": "fp32"}
    found = [value for t in ("tp2", "tp4") for value in measured(records, topology=t, **work)]
    reason = "the practice's data are not published"
    if found:
        reason += f"; here the tp losses are the dense model's within {max(found):.1f} × the noise of float32"
    return assessed("practice_loss", "formula only", reason, arithmetic, **figures)


def paper_512_gpus(records: Records) -> Measurement:
    """76 % of linear scaling on 512 V100, 8-way tensor times 64-way data parallelism."""
    share = 15_100 / (512 * 39)
    arithmetic = f"15.1 PFLOP/s ÷ (512 × 39 TFLOP/s on one GPU) = {share:.1%}: holds"
    reason = "needs 512 GPUs, 8 of them on one NVLink node, and a model of 8.3 B parameters"
    return assessed("paper_512_gpus", "out of reach here", reason, arithmetic, law=0.76, unit="share of linear scaling")
