"""Communication during computation: the share of its time that is hidden, and the share that is exposed.

A hidden share alone is no gain: where the transfer uses the cores that compute, as on a CPU, the step may take as long
or longer. Only step times show that.
"""

from collections.abc import Mapping, Sequence
from statistics import median

from harness.spec import Law, Measurement, Span

Ranks = Sequence[Sequence[Span]]  # one step's spans of each rank


def hidden(ranks: Ranks) -> float:
    """The share of the communication's time, from issue to completion, in which the same rank computed."""
    behind = total = 0.0
    for spans in ranks:
        computing = [s for s in spans if s.kind in "FBW"]
        for flight in (s for s in spans if s.kind == "C"):
            total += flight.end - flight.start
            behind += sum(max(0.0, min(flight.end, s.end) - max(flight.start, s.start)) for s in computing)
    return behind / total


def exposed(ranks: Ranks) -> float:
    """The share of the step's time, from the first action of any rank to the last, in which ranks issued communication
    or waited for it."""
    times = [moment for spans in ranks for s in spans for moment in (s.start, s.end)]
    return _seconds(ranks, "X") / (max(times) - min(times)) / len(ranks)


def judge(
    rounds: Sequence[Ranks],
    cores: int,
    promised: Mapping[str, float],
    laws: Mapping[str, Law],
    disturbed: bool = False,
) -> list[Measurement]:
    """Measurements for the hidden share, the exposed share, and the number of flights against its law; none if no
    communication was watched."""
    if not any(s.kind == "C" for ranks in rounds for spans in ranks for s in spans):
        return []
    shown = sorted(rounds, key=hidden)[len(rounds) // 2]
    flying, waiting = (_seconds(shown, kind) / len(shown) for kind in "CX")
    share, waited = (median(figure(ranks) for ranks in rounds) for figure in (hidden, exposed))
    texts = [f"{share:.1%} of the communication's time was hidden: {1e3 * flying:.2f} ms in flight per rank"]
    texts.append(f"issuing it and waiting for it took {waited:.1%} of the step: {1e3 * waiting:.2f} ms per rank")
    # A rank that waits for a core appears to compute.
    doubts = [f"{len(shown)} ranks on {cores} cores"] * (len(shown) > cores)
    doubts += ["other processes took some of the cores"] * disturbed
    verdict = "inconclusive" if doubts else "pass"
    texts = ["; ".join([text, *doubts]) for text in texts]
    about = {"measured": plain(shown), "seconds_in_flight": flying, "seconds_exposed": waiting}
    measurements = [
        Measurement("timeline", "hidden", share, "", verdict, texts[0], direction="higher", detail=about),
        Measurement("timeline", "exposed", waited, "", verdict, texts[1]),
    ]
    law, count = laws.get("flights"), promised.get("flights")
    if law is not None and count is not None:
        counts = sorted({sum(s.kind == "C" for s in spans) for ranks in rounds for spans in ranks})
        text = f"{', '.join(map(str, counts))} flights per rank and step, promised {count:.0f}; {law.source}"
        verdict = "pass" if counts == [round(count)] else "fail"
        found = next((n for n in counts if n != round(count)), counts[0])
        measurements.append(Measurement("timeline", "flights", found, "", verdict, text, law=count, direction="equal"))
    return measurements


def plain(ranks: Ranks) -> list[list[list[object]]]:
    """JSON form, in microseconds since the first action."""
    first = min(s.start for spans in ranks for s in spans)
    return [
        [[s.kind, s.stage, s.micro, round(1e6 * (s.start - first)), round(1e6 * (s.end - first))] for s in spans]
        for spans in ranks
    ]


def _seconds(ranks: Ranks, kind: str) -> float:
    return sum(s.end - s.start for spans in ranks for s in spans if s.kind == kind)
