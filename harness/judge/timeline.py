"""What a pipeline's ranks did when: the bubble, micro-batches in flight, and the same work on a core a rank."""

from collections.abc import Mapping, Sequence
from statistics import median, quantiles

from harness.judge import overlap
from harness.judge.overlap import Ranks, plain
from harness.spec import Finding, Law, Span

Key = tuple[str, int, int]


def bubble(ranks: Ranks) -> float:
    """Idle ÷ total time, from the first action of any rank to the last: on every schedule the same."""
    total = (max(s.end for spans in ranks for s in spans) - min(s.start for spans in ranks for s in spans)) * len(ranks)
    return 1.0 - sum(s.end - s.start for spans in ranks for s in spans) / total


def in_flight(spans: Sequence[Span]) -> float:
    """The most micro-batches whose activations a rank keeps; one that is in one of its v stages counts 1/v."""
    split = {(s.stage, s.micro) for s in spans if s.kind == "W"}  # a schedule may split some backward passes only
    now = most = 0
    for span in sorted(spans, key=lambda s: s.start):
        closing = "W" if (span.stage, span.micro) in split else "B"
        now += (span.kind == "F") - (span.kind == closing)
        most = max(most, now)
    return most / len({s.stage for s in spans})


def times(rounds: Sequence[Ranks]) -> dict[Key, float]:
    """Seconds of each (kind, rank, stage): the lower quartile over rounds and micro-batches, since whatever disturbs an
    action makes it longer."""
    found: dict[Key, list[float]] = {}
    for ranks in rounds:
        for rank, spans in enumerate(ranks):
            for s in spans:
                found.setdefault((s.kind, rank, s.stage), []).append(s.end - s.start)
    return {key: quantiles(values, n=4)[0] if len(values) > 1 else values[0] for key, values in found.items()}


def means(seconds: Mapping[Key, float]) -> dict[str, float]:
    """Of F, B and W over all ranks' stages; W is 0 where backward passes are not split."""
    kinds = {kind: [value for (k, _, _), value in seconds.items() if k == kind] for kind in "FBW"}
    return {kind: sum(values) / len(values) if values else 0.0 for kind, values in kinds.items()}


def replay(ranks: Ranks, seconds: Mapping[Key, float]) -> list[list[Span]]:
    """The same actions in the same order on every rank, each as soon as rank and predecessors are free."""
    known = {(s.kind, s.stage, s.micro) for spans in ranks for s in spans}
    order = [sorted(spans, key=lambda s: s.start) for spans in ranks]
    done: dict[Key, float] = {}
    found: list[list[Span]] = [[] for _ in ranks]
    free = [0.0] * len(ranks)
    while any(len(mine) < len(spans) for mine, spans in zip(found, order, strict=True)):
        before = len(done)
        for rank, spans in enumerate(order):
            while len(found[rank]) < len(spans):
                s = spans[len(found[rank])]
                needed = [key for key in _needed(s) if key in known]
                if any(key not in done for key in needed):
                    break
                start = max([free[rank], *(done[key] for key in needed)])
                free[rank] = done[s.kind, s.stage, s.micro] = start + seconds[s.kind, rank, s.stage]
                found[rank].append(s._replace(start=start, end=free[rank]))
        if len(done) == before:
            raise ValueError("these actions wait for one another")
    return found


def _needed(s: Span) -> list[Key]:
    if s.kind == "F":
        return [("F", s.stage - 1, s.micro)]
    if s.kind == "W":
        return [("B", s.stage, s.micro)]
    return [("F", s.stage, s.micro), ("B", s.stage + 1, s.micro)]


def judge(
    rounds: Sequence[Ranks],
    cores: int,
    promised: Mapping[str, float],
    laws: Mapping[str, Law],
    disturbed: bool = False,
) -> list[Finding]:
    """Bubble and micro-batches in flight against their laws (``promised``, by quantity). Where ranks share cores the
    measured durations are replayed, and the finding says so; where other processes took their cores
    (``disturbed``), a bubble that is too large is nobody's fault. Communication that was watched too is judged by
    itself (:mod:`harness.judge.overlap`); no bubble then, unless one is promised."""
    findings = overlap.judge(rounds, cores, promised, laws, disturbed)
    if findings and "bubble" not in laws:
        return findings
    rounds = [[[s for s in spans if s.kind in "FBW"] for spans in ranks] for ranks in rounds]
    seconds = times(rounds)
    shared = len(rounds[0]) > cores
    shown = replay(rounds[0], seconds) if shared else sorted(rounds, key=bubble)[len(rounds) // 2]
    ideal = replay(rounds[0], {key: means(seconds)[key[0]] for key in seconds})
    values = {
        "bubble": bubble(shown) if shared else median(bubble(ranks) for ranks in rounds),
        "in_flight": max(in_flight(spans) for spans in shown),
    }
    detail = {
        "replayed": shared,
        "times": means(seconds),
        "measured": plain(shown),
        "ideal": plain(ideal),
        "imbalance": bubble(replay(rounds[0], seconds)),
    }
    how = f"replayed from measured durations ({len(rounds[0])} ranks on {cores} cores)" if shared else "measured"
    for quantity, value in values.items():
        law, law_value = laws.get(quantity), promised.get(quantity)
        text, verdict = f"{quantity.replace('_', ' ')} {value:.3g} {how}", "pass"
        if law is not None and law_value is not None:
            text += f", promised {law_value:.3g}; {law.source}"
            # A schedule that beats its promise is no failure.
            if value > law_value * (1 + law.tolerance) + 1e-9:
                verdict = "inconclusive" if disturbed and quantity == "bubble" else "fail"
                text += "; other processes took some of the cores" if verdict == "inconclusive" else ""
        about = detail if quantity == "bubble" else {"replayed": shared}
        findings.append(
            Finding("timeline", quantity, value, "", verdict, text, law=law_value, direction="lower", detail=about)
        )
    return findings
