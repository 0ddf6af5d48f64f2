"""Communication that goes on while ranks compute: how much of its time is hidden, and what it costs them all the same.

A share that is hidden is no gain by itself: where the transfer takes the cores that compute, as on a CPU, the step may
take as long, or longer. That is for step times to say.
"""

from collections.abc import Mapping, Sequence
from statistics import median

from harness.spec import Finding, Law, Span

Ranks = Sequence[Sequence[Span]]  # what each rank did in one step


def hidden(ranks: Ranks) -> float:
    """Of the communication's time, from issue to completion, the share in which the same rank computed."""
    behind = total = 0.0
    for spans in ranks:
        computing = [s for s in spans if s.kind in "FBW"]
        for flight in (s for s in spans if s.kind == "C"):
            total += flight.end - flight.start
            behind += sum(max(0.0, min(flight.end, s.end) - max(flight.start, s.start)) for s in computing)
    return behind / total


def exposed(ranks: Ranks) -> float:
    """Of the step's time, from the first action of any rank to the last, the share in which ranks issued or waited."""
    times = [moment for spans in ranks for s in spans for moment in (s.start, s.end)]
    return _seconds(ranks, "X") / (max(times) - min(times)) / len(ranks)


def judge(
    rounds: Sequence[Ranks],
    cores: int,
    promised: Mapping[str, float],
    laws: Mapping[str, Law],
    disturbed: bool = False,
) -> list[Finding]:
    """The hidden share, what was exposed, and the number of flights against its law; nothing where none was watched."""
    if not any(s.kind == "C" for ranks in rounds for spans in ranks for s in spans):
        return []
    shown = sorted(rounds, key=hidden)[len(rounds) // 2]
    flying, waiting = (_seconds(shown, kind) / len(shown) for kind in "CX")
    share, waited = (median(figure(ranks) for ranks in rounds) for figure in (hidden, exposed))
    texts = [f"{share:.1%} of the communication's time was hidden: {1e3 * flying:.2f} ms a rank in flight"]
    texts.append(f"issuing it and waiting for it took {waited:.1%} of the step: {1e3 * waiting:.2f} ms a rank")
    # A rank that waits for a core looks as if it computed.
    doubts = [f"{len(shown)} ranks on {cores} cores"] * (len(shown) > cores)
    doubts += ["other processes took some of the cores"] * disturbed
    verdict = "inconclusive" if doubts else "pass"
    texts = ["; ".join([text, *doubts]) for text in texts]
    about = {"measured": plain(shown), "seconds_in_flight": flying, "seconds_exposed": waiting}
    findings = [
        Finding("timeline", "hidden", share, "", verdict, texts[0], direction="higher", detail=about),
        Finding("timeline", "exposed", waited, "", verdict, texts[1]),
    ]
    law, count = laws.get("flights"), promised.get("flights")
    if law is not None and count is not None:
        counts = sorted({sum(s.kind == "C" for s in spans) for ranks in rounds for spans in ranks})
        text = f"{', '.join(map(str, counts))} flights a rank and step, promised {count:.0f}; {law.source}"
        verdict = "pass" if counts == [round(count)] else "fail"
        found = next((n for n in counts if n != round(count)), counts[0])
        findings.append(Finding("timeline", "flights", found, "", verdict, text, law=count, direction="equal"))
    return findings


def plain(ranks: Ranks) -> list[list[list[object]]]:
    """As JSON has it, from the first action on, in microseconds."""
    first = min(s.start for spans in ranks for s in spans)
    return [
        [[s.kind, s.stage, s.micro, round(1e6 * (s.start - first)), round(1e6 * (s.end - first))] for s in spans]
        for spans in ranks
    ]


def _seconds(ranks: Ranks, kind: str) -> float:
    return sum(s.end - s.start for spans in ranks for s in spans if s.kind == kind)
