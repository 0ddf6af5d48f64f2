"""The timeline of a pipeline's ranks: its bubble, its micro-batches in flight, and a replay of the same work with one
core per rank."""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.judge import overlap
from harness.judge.overlap import Ranks, plain
from harness.spec import Law, Measurement, Span

RESAMPLES = 100
Key = tuple[str, int, int]
Seconds = Callable[[int, Span], float]  # seconds of an action on a rank


def bubble(ranks: Ranks) -> float:
    """Idle ÷ total time, from the first action of any rank to the last; the definition is the same for every
    schedule."""
    total = (max(s.end for spans in ranks for s in spans) - min(s.start for spans in ranks for s in spans)) * len(ranks)
    return 1.0 - sum(s.end - s.start for spans in ranks for s in spans) / total


def in_flight(spans: Sequence[Span]) -> float:
    """The largest number of micro-batches whose activations a rank keeps; a micro-batch in one of the rank's v stages
    counts 1/v."""
    split = {(s.stage, s.micro) for s in spans if s.kind == "W"}  # a schedule may split only some backward passes
    now = most = 0
    for span in sorted(spans, key=lambda s: s.start):
        closing = "W" if (span.stage, span.micro) in split else "B"
        now += (span.kind == "F") - (span.kind == closing)
        most = max(most, now)
    return most / len({s.stage for s in spans})


def times(rounds: Sequence[Ranks]) -> dict[Key, float]:
    """Seconds of each (kind, rank, stage): the lower quartile over rounds and micro-batches, since disturbances only
    make an action longer."""
    found: dict[Key, list[float]] = {}
    for ranks in rounds:
        for rank, spans in enumerate(ranks):
            for s in spans:
                found.setdefault((s.kind, rank, s.stage), []).append(s.end - s.start)
    return {key: float(np.quantile(values, 0.25)) for key, values in found.items()}


def means(seconds: Mapping[Key, float]) -> dict[str, float]:
    """Mean seconds of F, B and W over all ranks' stages; W is 0 where backward passes are not split."""
    kinds = {kind: [value for (k, _, _), value in seconds.items() if k == kind] for kind in "FBW"}
    return {kind: sum(values) / len(values) if values else 0.0 for kind, values in kinds.items()}


def replay(ranks: Ranks, seconds: Seconds, delay: Seconds = lambda rank, span: 0.0) -> list[list[Span]]:
    """The same actions in the same order on every rank. Each starts ``delay`` after its rank and predecessors are
    free."""
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
                ready = max([free[rank], *(done[key] for key in needed)])
                start = max(free[rank], ready + delay(rank, s))
                free[rank] = done[s.kind, s.stage, s.micro] = start + seconds(rank, s)
                found[rank].append(s._replace(start=start, end=free[rank]))
        if len(done) == before:
            raise ValueError("these actions wait for one another")
    return found


class Typical:
    """A typical round: each action takes the lower quartile over rounds of its own time, and starts the lower quartile
    of its own delays after it could have started. Differences between rounds are the machine's; the rest is the
    engine's."""

    def __init__(self, rounds: Sequence[Ranks]) -> None:
        self.ranks = rounds[0]
        actions = [(s.kind, s.stage, s.micro) for spans in self.ranks for s in spans]
        self.place = {action: index for index, action in enumerate(actions)}
        self.kinds = np.array([kind for kind, _, _ in actions])
        self.seconds, self.delays = np.zeros((2, len(rounds), len(self.place)))
        for index, ranks in enumerate(rounds):
            ends = {(s.kind, s.stage, s.micro): s.end for spans in ranks for s in spans}
            for spans in ranks:
                free = -inf
                for s in sorted(spans, key=lambda s: s.start):
                    place = index, self.place[s.kind, s.stage, s.micro]
                    ready = max([free, *(ends[key] for key in _needed(s) if key in ends)])
                    self.seconds[place] = s.end - s.start
                    # Negative if its input was sent before the action that produced it had ended.
                    self.delays[place] = s.start - ready if ready > -inf else 0.0
                    free = s.end

    def round(
        self, alike: bool = False, delayed: bool = True, chosen: Sequence[int] | slice = slice(None)
    ) -> list[list[Span]]:
        """The typical round of the ``chosen`` rounds. With ``alike`` all actions of a kind last as long as their mean;
        without ``delayed`` there are no delays."""
        seconds, delays = (np.quantile(each[chosen], 0.25, axis=0) for each in (self.seconds, self.delays * delayed))
        for kind in set(self.kinds) if alike else ():
            seconds[self.kinds == kind] = seconds[self.kinds == kind].mean()
        return replay(self.ranks, *(self._of(each) for each in (seconds, delays)))

    def _of(self, values: NDArray[np.float64]) -> Seconds:
        return lambda rank, s: float(values[self.place[s.kind, s.stage, s.micro]])

    def interval(self, alike: bool, delayed: bool) -> tuple[float, float]:
        """The 95 % interval of its bubble: the basic bootstrap over rounds, which corrects a bias (random differences
        between times only enlarge a bubble)."""
        drawn = np.random.default_rng(0).integers(len(self.seconds), size=(RESAMPLES, len(self.seconds)))
        # Three rounds have only ten different draws: each is replayed once.
        different, often = np.unique(np.sort(drawn), axis=0, return_counts=True)
        found = np.repeat([bubble(self.round(alike, delayed, chosen)) for chosen in different], often)
        high, low = 2 * bubble(self.round(alike, delayed)) - np.quantile(found, [0.025, 0.975])
        return float(low), float(high)


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
    alike: bool = False,
) -> list[Measurement]:
    """Judges the bubble and the micro-batches in flight by their laws (``promised``, by quantity).

    The bubble is that of the :class:`Typical` round. Where cores differ (``alike``), actions of a kind count as equally
    long, as the law assumes, and the reason also gives the bubble with their real lengths. Where ranks share cores, the
    actions' times are replayed on one core per rank without delays, and the reason says so. If the interval does not
    exclude the bound, or other processes took the cores (``disturbed``), the verdict is inconclusive. Watched
    communication is judged by :mod:`harness.judge.overlap`; then there is no bubble unless a law promises one.
    """
    measurements = overlap.judge(rounds, cores, promised, laws, disturbed)
    if measurements and "bubble" not in laws:
        return measurements
    rounds = [[[s for s in spans if s.kind in "FBW"] for spans in ranks] for ranks in rounds]
    each, middle, typical = means(times(rounds)), sorted(rounds, key=bubble)[len(rounds) // 2], Typical(rounds)
    shared = len(rounds[0]) > cores
    shown, undelayed = typical.round(alike, delayed=not shared), typical.round(alike, delayed=False)
    ideal = replay(rounds[0], lambda rank, s: each[s.kind])
    value, (low, high) = bubble(shown), typical.interval(alike, delayed=not shared)
    text = f"bubble {value:.3g} ({low:.3g} to {high:.3g}) of the typical round"
    text += " with actions of a kind equally long" if alike else ""
    if shared:
        text += f", replayed from measured durations ({len(rounds[0])} ranks on {cores} cores)"
    else:
        text += f", {max(0.0, value - bubble(undelayed)):.2g} of it from calls and messages"
    text += f"; {bubble(typical.round(delayed=not shared)):.3g} with their real lengths" if alike else ""
    if not shared:
        text += f"; {bubble(middle):.3g} in the median one of {len(rounds)}"
    drawn = typical.round(delayed=False) if shared else middle
    detail = {
        "replayed": shared,
        "alike": alike,
        "times": each,
        "measured": plain(drawn),
        "drawn": bubble(drawn),
        "ideal": plain(ideal),
        "low": low,
        "high": high,
        "equal": value - bubble(undelayed) + bubble(ideal),
    }
    most = max(in_flight(spans) for spans in shown)
    return [
        *measurements,
        _measurement("bubble", value, (low, high), text, promised, laws, disturbed, detail),
        _measurement(
            "in_flight", most, (most, most), f"in flight {most:.3g}", promised, laws, False, {"replayed": shared}
        ),
    ]


def found_bubble(measurements: Sequence[Measurement]) -> float:
    """The bubble of a world, for the comparison of two worlds; 0 if none was measured."""
    return max(
        (measurement.value or 0.0 for measurement in measurements if measurement.quantity == "bubble"), default=0.0
    )


def unequal(measurements: Sequence[Measurement]) -> bool:
    """Whether a bubble may be too large only because equal actions took unequal times. Other worlds at other times then
    show whether the machine is to blame."""
    return any(
        measurement.verdict in ("fail", "inconclusive") and measurement.detail["equal"] <= measurement.bound
        for measurement in measurements
        if measurement.quantity == "bubble" and measurement.bound is not None
    )


def _measurement(
    quantity: str,
    value: float,
    interval: tuple[float, float],
    text: str,
    promised: Mapping[str, float],
    laws: Mapping[str, Law],
    disturbed: bool,
    detail: Mapping[str, Any],
) -> Measurement:
    law, law_value = laws.get(quantity), promised.get(quantity)
    verdict, bound = "pass", None
    if law is not None and law_value is not None:
        text += f", promised {law_value:.3g}; {law.source}"
        bound = law_value * (1 + law.tolerance) + 1e-9  # a schedule that beats its law passes
        if max(value, interval[1]) > bound:
            verdict = "inconclusive" if disturbed or interval[0] <= bound else "fail"
        if disturbed and verdict == "inconclusive":
            text += "; other processes took some of the cores"
    return Measurement(
        "timeline", quantity, value, "", verdict, text, law=law_value, bound=bound, direction="lower", detail=detail
    )
