"""Published figures of pipeline parallelism against this session's timelines. A bubble is idle ÷ total time, always.

A timeline is measured, or replayed from measured durations where ranks share cores; on CPU ranks its bubble has
actions of a kind equally long. Its *ideal* does not wait either: whether a schedule is what a formula speaks of shows
there, apart from how quiet the machine is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.spec import Measurement, assessed, measured

Records = Sequence[Mapping[str, Any]]
WITHIN = 0.10  # relative: what a measured and a promised bubble may differ by and be called the same
EQUAL = 0.20  # relative: what F, B and W may differ by and be called equal
TIMELINE = {"measure": "timeline", "engine": "reference", "dtype": "fp32"}
WORK = {"pp2": "compute_bound", "pp4": "compute_bound_short"}
MEMORY = {"measure": "memory", "engine": "reference", "workload": "pipelined_deep", "dtype": "fp32"}
MICRO_BATCHES = 8  # of that work
COURSE_TABLE = {(4, 4): 0.429, (4, 8): 0.273, (4, 16): 0.158, (4, 32): 0.086, (8, 16): 0.304, (8, 32): 0.179}


def _formula(stages: int, micro_batches: int) -> float:
    return (stages - 1) / (micro_batches + stages - 1)


def _timeline(records: Records, variant: str, topology: str) -> Mapping[str, Any] | None:
    """The record of a bubble."""
    wanted = TIMELINE | {"topology": topology, "workload": WORK[topology], "quantity": "bubble", "variant": variant}
    for record in records:
        if record["value"] is not None and all(record.get(name) == value for name, value in wanted.items()):
            return record
    return None


def _ideal(record: Mapping[str, Any]) -> float:
    """The bubble of the record's schedule with equal stages."""
    ranks = record["detail"]["ideal"]  # of each rank [kind, stage, micro-batch, begin, end]
    spans = [span for rank in ranks for span in rank]
    total = max(span[4] for span in spans) - min(span[3] for span in spans)
    return 1 - sum(span[4] - span[3] for span in spans) / (total * len(ranks))


def _per_work(bubble: float) -> float:
    """Idle time ÷ the time of the work, which is the same in all schedules."""
    return bubble / (1 - bubble)


def _how(record: Mapping[str, Any]) -> str:
    how = "replayed from measured durations" if record["detail"]["replayed"] else "measured"
    return how + ", but for actions of a kind equally long" * record["detail"].get("alike", False)


def _judged(
    name: str, law: float, value: float, ideal: float, reason: str, arithmetic: str, unit: str = "ratio"
) -> Measurement:
    """A figure of timelines, and what it is with equal stages."""
    reason += f"; {ideal:.3g} with every stage as long as their mean"
    figures = {"value": value, "law": law, "unit": unit, "detail": {"ideal": ideal}}
    if abs(ideal / law - 1) > WITHIN:
        return assessed(name, "contradicted", reason, arithmetic, **figures)
    if abs(value / law - 1) <= WITHIN:
        return assessed(name, "reproduced", reason, arithmetic, **figures)
    reason += "; the measured one takes stages of equal length, a core for each and nothing else on them"
    return assessed(name, "out of reach here", reason, arithmetic, **figures)


def _missing(name: str, law: float | None, arithmetic: str, what: str, unit: str = "ratio") -> Measurement:
    reason = f"this run has no {what}"
    return assessed(name, "out of reach here", reason, arithmetic, law=law, unit=unit)


def course_bubble(records: Records) -> Measurement:
    """(S − 1)/(M + S − 1) for six pairs, of which 4 stages and 8 micro-batches run here."""
    off = [pair for pair, published in COURSE_TABLE.items() if round(_formula(*pair), 3) != published]
    arithmetic = "all six figures follow from the formula" if not off else f"the formula gives other figures for {off}"
    law, found = COURSE_TABLE[4, MICRO_BATCHES], _timeline(records, "gpipe", "pp4")
    if found is None:
        return _missing("course_bubble", law, arithmetic, "timeline of GPipe at pp4", "idle ÷ total")
    reason = f"GPipe on 4 stages with {MICRO_BATCHES} micro-batches: {found['value']:.3f} {_how(found)}"
    return _judged("course_bubble", law, found["value"], _ideal(found), reason, arithmetic, "idle ÷ total")


def course_schedules(records: Records) -> Measurement:
    """Naive 0, GPipe .086, 1F1B .094, interleaved .047: of 4 stages and 32 micro-batches, by two definitions."""
    total, ideal = _formula(4, 32), 3 / 32
    arithmetic = (
        f"idle ÷ total is {total:.3f} for GPipe and 1F1B alike, {1.5 / (32 + 1.5):.3f} interleaved (v = 2); .094 and "
        f".047 are idle ÷ work, {ideal:.3f} and {ideal / 2:.3f}; the naive pipeline idles 1 − 1/S = {1 - 1 / 4:.2f}"
    )
    figures = {"law": round(0.094 / 0.086, 3), "unit": "1F1B's bubble ÷ GPipe's"}
    found = [_timeline(records, variant, "pp4") for variant in ("gpipe", "1f1b")]
    reason = "by one definition GPipe and 1F1B have the same bubble, and naive is the worst of all, not the best"
    if found[0] is None or found[1] is None:
        return assessed("course_schedules", "contradicted", reason, arithmetic, **figures)
    gpipe, one_f_one_b = (_ideal(record) for record in found if record)
    reason += f"; on this work GPipe {gpipe:.3f} and 1F1B {one_f_one_b:.3f}, replayed with stages of equal length"
    status = "contradicted" if abs(one_f_one_b / gpipe - 1) < 0.094 / 0.086 - 1 else "reproduced"
    return assessed("course_schedules", status, reason, arithmetic, value=one_f_one_b / gpipe, **figures)


def enough_micro_batches(records: Records) -> Measurement:
    """M ≥ 4S: 2 stages and 8 micro-batches are just that."""
    arithmetic = f"at M = 4S the bubble is (S − 1)/(5S − 1): {_formula(2, 8):.3f} at S = 2, and 0.2 in the limit"
    law, found = _formula(2, MICRO_BATCHES), _timeline(records, "gpipe", "pp2")
    figures = {"law": law, "unit": "idle ÷ total"}
    reason = "the rule names no bubble that would be small enough"
    if found is None:
        return assessed("enough_micro_batches", "formula only", reason, arithmetic, **figures)
    reason += f"; GPipe's at M = 4S is {found['value']:.3f} here, {_how(found)}"
    return assessed("enough_micro_batches", "formula only", reason, arithmetic, value=found["value"], **figures)


def hanayo(records: Records) -> Measurement:
    """Up to 30.4 % better throughput on at most 32 GPUs."""
    reason = "takes 32 GPUs, and Hanayo's waves, which neither the reference nor an engine here has"
    arithmetic = (
        "a wave is interleaving in the shape of a V (zb_v here without the split): its gain is a shorter bubble"
    )
    return assessed("hanayo", "out of reach here", reason, arithmetic, law=0.304, unit="throughput gained")


def pipedream(records: Records) -> Measurement:
    """Up to 5.3 × data parallelism's speed: VGG-16, whose dense layers stay on one GPU and are never reduced."""
    widths = (64, 64, 128, 128, 256, 256, 256, *(512,) * 6)
    convolved = sum(9 * before * width + width for before, width in zip((3, *widths), widths, strict=False))
    dense = sum(n * m + m for n, m in ((7 * 7 * 512, 4096), (4096, 4096), (4096, 1000)))
    arithmetic = (
        f"of {(convolved + dense) / 1e6:.0f} M parameters {dense / 1e6:.0f} M are dense: without them "
        f"{(convolved + dense) / convolved:.1f} × fewer gradients are reduced; and 5.3 × means that data parallelism "
        f"waits for {1 - 1 / 5.3:.0%} of its step, or more"
    )
    reason = "takes 16 GPUs on slow links, ImageNet and PipeDream's runtime, which cannot be installed"
    figures = {"law": 5.3, "unit": "× data parallelism's speed"}
    return assessed("pipedream", "out of reach here", reason, arithmetic, **figures)


def dual_pipe_memory(records: Records) -> Measurement:
    """Twice the parameters: model states of DualPipe ÷ of 1F1B, on the rank that holds most."""
    wanted = MEMORY | {"quantity": "states", "topology": "pp4"}
    two, one = (measured(records, variant=variant, **wanted) for variant in ("dual_pipe", "1f1b"))
    arithmetic = "a rank holds stage s of one copy and stage p − 1 − s of the other: 2/p of the model instead of 1/p"
    if not two or not one:
        return _missing("dual_pipe_memory", 2.0, arithmetic, "model states of DualPipe and 1F1B at pp4")
    ratio = two[0] / one[0]
    status = "reproduced" if abs(ratio / 2 - 1) <= WITHIN else "contradicted"
    return assessed(
        "dual_pipe_memory", status, f"{ratio:.2f} × 1F1B's model states at pp4", arithmetic, value=ratio, law=2.0
    )


def dual_pipe_bubble(records: Records) -> Measurement:
    """(PP/2 − 1)(F&B + B − 3W), where F&B is a forward and a backward pass that hide one another's communication."""
    arithmetic = (
        "its B is a whole backward pass, B + W here; with F&B = F + B + W, nothing hidden, it is "
        "(PP/2 − 1)(F + 2B − W), 0 at PP = 2; at PP = 4 with F = B = W, 2 of "
        f"{3 * MICRO_BATCHES + 2} unit times for {MICRO_BATCHES} micro-batches"
    )
    found = _timeline(records, "dual_pipe", "pp4")
    reason = "it is promised for layers that communicate inside, behind one another's computing; none here does"
    if found is None:
        return assessed("dual_pipe_bubble", "out of reach here", reason, arithmetic, unit="idle ÷ work")
    times = found["detail"]["times"]
    law = (times["F"] + 2 * times["B"] - times["W"]) / (MICRO_BATCHES * sum(times.values()))
    value = _per_work(_ideal(found))
    reason += (
        f"; one after the other the formula gives {law:.3f} of the work for the durations measured here, and this "
    )
    reason += f"schedule, replayed with them and each gradient sent as soon as it is there, idles {value:.3f}"
    figures = {"value": value, "law": law, "unit": "idle ÷ work", "detail": {"times": times}}
    return assessed("dual_pipe_bubble", "out of reach here", reason, arithmetic, **figures)


def zb_h1(records: Records) -> Measurement:
    """The bubble shrinks to a third of 1F1B's at the same memory: at equal F, B and W."""
    arithmetic = "(F + B − W) ÷ (F + B + W) of 1F1B's idle time: 1/3 at F = B = W, more where W is the shortest"
    zero, one = (_timeline(records, variant, "pp4") for variant in ("zb_h1", "1f1b"))
    if zero is None or one is None:
        return _missing("zb_h1", 1 / 3, arithmetic, "timelines of ZB-H1 and 1F1B at pp4")
    f, b, w = (zero["detail"]["times"][kind] for kind in "FBW")
    at_these = (f + b - w) / (f + b + w)
    value = _per_work(zero["value"]) / _per_work(one["value"])
    wanted = TIMELINE | {"topology": "pp4", "workload": WORK["pp4"], "quantity": "in_flight"}
    kept = [measured(records, variant=variant, **wanted) for variant in ("zb_h1", "1f1b")]
    reason = f"{value:.2f} of 1F1B's idle time at pp4, {_how(zero)}, with as many micro-batches in flight"
    if kept[0] > kept[1]:
        reason = f"{value:.2f} of 1F1B's idle time, but {kept[0][0]:g} micro-batches in flight for {kept[1][0]:g}"
        return assessed("zb_h1", "contradicted", reason, arithmetic, value=value, law=1 / 3)
    if max(f, b, w) > (1 + EQUAL) * min(f, b, w):
        reason += (
            f"; F : B : W is {f / w:.2f} : {b / w:.2f} : 1 here, for which the formula gives {at_these:.2f}: a third "
            "takes stages in which the three are equal"
        )
        detail = {"formula": at_these, "times": {"F": f, "B": b, "W": w}}
        return assessed("zb_h1", "out of reach here", reason, arithmetic, value=value, law=1 / 3, detail=detail)
    ideal = _per_work(_ideal(zero)) / _per_work(_ideal(one))
    return _judged("zb_h1", 1 / 3, value, ideal, reason, arithmetic, "of 1F1B's idle time")


def interleaved(records: Records) -> Measurement:
    """Interleaving divides the idle time by v, the stages a rank: 2 here."""
    arithmetic = "a chunk is a v-th of the layers, so that filling and draining take a v-th of the time"
    unit = "1F1B's idle time ÷ interleaved"
    chunks, one = (_timeline(records, variant, "pp4") for variant in ("interleaved", "1f1b"))
    if chunks is None or one is None:
        return _missing("interleaved", 2.0, arithmetic, "timelines of interleaved and plain 1F1B at pp4", unit)
    value = _per_work(one["value"]) / _per_work(chunks["value"])
    ideal = _per_work(_ideal(one)) / _per_work(_ideal(chunks))
    reason = f"1F1B idles {value:.2f} × as long as with 2 chunks a rank, at pp4, {_how(chunks)}"
    return _judged("interleaved", 2.0, value, ideal, reason, arithmetic, unit)
