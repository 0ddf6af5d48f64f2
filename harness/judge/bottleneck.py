"""What bounds a step, from the profiles of its ranks and the ceilings of the machine."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from harness.spec import Measurement
from harness.spec.run import Anatomy, Ceilings, Operations, Profile

ADDED_UP = 0.05  # the parts must add up to the step within this share of it
NOTICEABLE = 0.05  # share of a step
WORDS = {
    "arithmetic": "arithmetic",
    "memory": "memory traffic",
    "communication": "communication",
    "idle": "idle ranks",
    "host": "the host",
}
ADVICE = {
    "arithmetic": "fewer FLOPs, a lower precision or a faster kernel would help",
    "memory": "fused operators, fewer temporaries or a narrower dtype would help",
    "communication": "fewer bytes, larger messages or overlap would help",
    "idle": "the ranks wait for each other: a better balance or more micro-batches would help",
    "host": "the device waits for Python and dispatch: larger work, a compiled step or CUDA graphs would help",
}


def judge(profiles: Sequence[Profile], ceilings: Sequence[Ceilings], sent: Sequence[Operations]) -> Measurement:
    """The parts of a step of several ranks, as shares of it.

    ``sent``: the collectives of a step of each rank; empty where they cannot be counted, and all waiting is
    communication. Otherwise communication is the time that they take at best on this machine, and the rest of the
    waiting is idle. The steps without and with the profiler that were least disturbed are compared.
    """
    step = min(max(seconds) for seconds in zip(*(rank.seconds for rank in profiles), strict=True))
    profiled = list(zip(*(rank.anatomies for rank in profiles), strict=True))
    ranks: tuple[Anatomy, ...] = min(profiled, key=lambda ranks: max(rank.seconds for rank in ranks))
    wires = [limits.wire(operations) for limits, operations in zip(ceilings, sent, strict=bool(sent))]
    parts = _parts(ranks, wires)
    whole = sum(parts.values())
    shares = {name: seconds / whole for name, seconds in parts.items()}
    bound = max(shares, key=lambda name: shares[name])
    flops, moved = (sum(getattr(rank, name) for rank in profiles) for name in ("flops", "bytes"))
    detail = {
        "shares": shares,
        "bound": bound,
        "hidden": fmean(rank.hidden for rank in ranks) / whole,
        "step": step,
        "flops": flops,
        "bytes": moved,
        "flops_ceiling": sum(rank.flops for rank in ceilings),
        "bandwidth_ceiling": sum(rank.bandwidth for rank in ceilings),
        "collectives": {name: list(found) for name, found in ceilings[0].collectives.items()},
    }
    listed = ", ".join(f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda s: -s[1]) if share)
    text = f"bound by {WORDS[bound]}: {listed}"
    if detail["hidden"] > 0.005:
        text += f"; communication during {detail['hidden']:.0%} of the step is hidden by computation"
    rate = flops / parts["arithmetic"] if parts["arithmetic"] else 0.0
    text += f"; {_attained(shares['arithmetic'], rate / sum(rank.flops for rank in ceilings))}{ADVICE[bound]}"
    gap = whole / step - 1
    if abs(gap) > ADDED_UP:
        text = f"the parts add up to {1 + gap:.0%} of a step without the profiler: {text}"
    verdict = "pass" if abs(gap) <= ADDED_UP else "inconclusive"
    return Measurement(
        "bottleneck", "added_up", 1 + gap, "of the step", verdict, text, law=1.0, direction="equal", detail=detail
    )


def _parts(ranks: Sequence[Anatomy], wires: Sequence[float]) -> Mapping[str, float]:
    """Mean seconds of the ranks. Some of the communication is hidden; the rest of it is the first part of waiting."""
    exposed = [rank.waiting for rank in ranks]
    if wires:
        exposed = [min(rank.waiting, max(wire - rank.hidden, 0.0)) for rank, wire in zip(ranks, wires, strict=True)]
    return {
        "arithmetic": fmean(rank.arithmetic for rank in ranks),
        "memory": fmean(rank.memory for rank in ranks),
        "communication": fmean(exposed),
        "idle": fmean(rank.waiting - part for rank, part in zip(ranks, exposed, strict=True)),
        "host": fmean(rank.host for rank in ranks),
    }


def _attained(share: float, ratio: float) -> str:
    """How near the products are to the ceiling, where they take a noticeable part."""
    if share < NOTICEABLE or not ratio:
        return ""
    if ratio > 1:
        return "products run faster than this machine's ceiling, which was measured under disturbance; "
    return f"products run at {ratio:.0%} of this machine's ceiling; "
