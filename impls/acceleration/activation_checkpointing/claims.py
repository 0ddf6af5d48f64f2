"""Published figures of activation checkpointing compared with this session's."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from harness.spec import Measurement, assessed, measured
from impls.acceleration.activation_checkpointing.grid import DROPPED

Records = Sequence[Mapping[str, Any]]
WITHIN = 0.05
LAYERS = DROPPED.model.num_hidden_layers
HERE = {"engine": "reference", "workload": DROPPED.name, "dtype": "fp32", "topology": "dp1"}
NONE = "this run has no figures of the reference on its deep model"


def found(records: Records, variant: str, quantity: str) -> float | None:
    values = measured(records, variant=variant, quantity=quantity, **HERE)
    return values[0] if values else None


def course_saving(records: Records) -> Measurement:
    """1 − √L/L: true of the segments' inputs and of the one segment that is replayed, if an input costs nothing."""
    promised = 1 - sqrt(LAYERS) / LAYERS
    arithmetic = (
        f"a segment of √L layers is √L/L of all layers, {sqrt(LAYERS) / LAYERS:.0%} at L {LAYERS}; the √L inputs come "
        "on top: the saving is 1 − √L/L less the inputs"
    )
    figures = {"law": promised, "unit": "share of the activations"}
    plain, kept = (found(records, variant, "activations") for variant in ("no_recompute", "recompute_sqrt"))
    peaks = [found(records, variant, "peak") for variant in ("no_recompute", "recompute_sqrt")]
    if plain is None or kept is None or peaks[0] is None or peaks[1] is None:
        return assessed("course_saving", "out of reach here", NONE, arithmetic, **figures)
    saved = 1 - kept / plain - sqrt(LAYERS) / LAYERS
    status = "reproduced" if abs(saved / promised - 1) <= WITHIN else "contradicted"
    reason = (
        f"at L {LAYERS} the inputs are {kept / plain:.1%} of all activations, and with one segment's {saved:.1%} are "
        f"saved, where 1 − √L/L is {promised:.1%}; the peak of a step falls by {(peaks[0] - peaks[1]) / plain:.1%} of "
        "them, since most gradients exist when the last segment is replayed"
    )
    return assessed("course_saving", status, reason, arithmetic, value=saved, **figures)


def course_compute(records: Records) -> Measurement:
    """2√L/L and "about double", in one passage: they exclude each other, and neither is the cost."""
    promised = 2 * sqrt(LAYERS) / LAYERS
    arithmetic = (
        f"2√L/L is {promised:.0%} at L {LAYERS}, 20 % at L 100 and falls with L, while double is 100 % at every L. "
        "Every layer runs forward once more whatever L is: 1 of 3 parts, 33 %"
    )
    figures = {"law": promised, "unit": "share of a step's operations"}
    extra = _extra(records)
    if extra is None:
        return assessed("course_compute", "out of reach here", NONE, arithmetic, **figures)
    status = "reproduced" if abs(extra / promised - 1) <= WITHIN else "contradicted"
    reason = f"at L {LAYERS} with segments of √L layers a step has {extra:.1%} more operations"
    return assessed("course_compute", status, reason, arithmetic, value=extra, **figures)


def chen_compute(records: Records) -> Measurement:
    """One more forward pass; about 30 % more time."""
    arithmetic = "forward : backward is 1 : 2 in operations, so one more forward pass is 1/3 of a step"
    figures = {"law": 0.3, "unit": "share of a step"}
    extra = _extra(records)
    if extra is None:
        return assessed("chen_compute", "out of reach here", NONE, arithmetic, **figures)
    reason = (
        f"counted: {extra:.1%} more operations, without the head, which no segment has; the paper's 30 % is a time, of "
        "a convolutional network on a GPU"
    )
    status = "reproduced" if 0.3 * (1 - WITHIN) <= extra <= 1 / 3 * (1 + WITHIN) else "contradicted"
    return assessed("chen_compute", status, reason, arithmetic, value=extra, **figures)


def _extra(records: Records) -> float | None:
    again, step = (found(records, "recompute_sqrt", quantity) for quantity in ("recomputed", "step"))
    return None if again is None or step is None else again / (step - again)


def korthikanti_layer(records: Records) -> Measurement:
    """s·b·h(34 + 5as/h): what selective recomputation drops is proportional to a·s² alone."""
    model, s = DROPPED.model, DROPPED.sequence_length
    a, rows = model.num_attention_heads, DROPPED.batch_size * DROPPED.sequence_length * s
    arithmetic = (
        "5as/h · sbh = 5abs² B a layer: softmax 2, its dropout's mask 1 and result 2 B a score in fp16; ours in "
        "float32, without attention dropout, has 4 B. GPT-3 (a 96, s 2048, h 12288): 5as/h = 80 of 34 + 80, 70 %"
    )
    figures = {"law": 4.0, "unit": "B a score"}
    kept = [found(records, variant, "activations") for variant in ("no_recompute", "recompute_attention")]
    if kept[0] is None or kept[1] is None:
        return assessed("korthikanti_layer", "out of reach here", NONE, arithmetic, **figures)
    each = (kept[0] - kept[1]) / (rows * a * LAYERS)
    status = "reproduced" if abs(each / 4.0 - 1) <= WITHIN else "contradicted"
    reason = (
        f"recomputing attention alone keeps {each:.2f} B a score, layer and head less, {1 - kept[1] / kept[0]:.0%} of "
        f"all activations at a {a}, s {s}, h {model.hidden_size}"
    )
    return assessed("korthikanti_layer", status, reason, arithmetic, value=each, **figures)


def korthikanti_operations(records: Records) -> Measurement:
    """Over 90 % of the recomputation is saved: in operations, at the paper's sizes."""
    model, s = DROPPED.model, DROPPED.sequence_length
    arithmetic = (
        "attention's two products are 4bs²h of a layer's 24bsh² + 4bs²h operations: 1 − s/(6h + s) of a full "
        "recomputation is saved, 95 % at s 2048, h 6144 and 98 % at h 25600"
    )
    figures = {"law": 0.9, "unit": "share of the recomputed operations"}
    again = [found(records, variant, "recomputed") for variant in ("recompute_sqrt", "recompute_attention")]
    if again[0] is None or again[1] is None:
        return assessed("korthikanti_operations", "out of reach here", NONE, arithmetic, **figures)
    saved = 1 - again[1] / again[0]
    reason = (
        f"the figure is a time on GPUs; counted at s {s} and h {model.hidden_size}, where attention is a larger part, "
        f"{saved:.0%} of a full recomputation's operations are saved"
    )
    return assessed("korthikanti_operations", "formula only", reason, arithmetic, value=saved, **figures)
