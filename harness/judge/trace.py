"""The values that an engine observes in its steps, compared with the dense model's."""

from collections.abc import Mapping, Sequence

from harness.judge.parity import MARGIN, Reference
from harness.spec import Measurement


def judge(observed: Sequence[Mapping[str, float]], reference: Reference, first: bool) -> list[Measurement]:
    """One measurement for each value that the float64 model observes, for the step with the largest error. A value that
    is a whole number in every step there (a count, a flag, a scale by powers of two) must be equal. ``first``: the
    engine is the reference, which must observe all of them."""
    truth = reference.oracle.observed
    if not truth:
        return [
            Measurement("trace", "run", None, "", "error", "the dense model has no observe(), but the card says so")
        ]
    return [_one(name, observed, reference, first) for name in truth[0]]


def _one(name: str, observed: Sequence[Mapping[str, float]], reference: Reference, first: bool) -> Measurement:
    truth = [step[name] for step in reference.oracle.observed]
    if not observed or any(name not in step for step in observed):
        told = ", ".join(observed[0]) if observed and observed[0] else "nothing"
        reason = f"the engine observes {told}, not {name}"
        return Measurement("trace", name, None, "", "fail" if first else "skipped", reason)
    found = [step[name] for step in observed]
    curves = {"observed": found, "oracle": truth}
    if all(value == round(value) for value in truth):
        for step, (got, true) in enumerate(zip(found, truth, strict=True), start=1):
            if got != true:
                return Measurement(
                    "trace", name, got, "", "fail", f"step {step}: {got:g} instead of {true:g}", true, detail=curves
                )
        text = f"equal in all {len(truth)} steps"
        return Measurement("trace", name, found[-1], "", "pass", text, truth[-1], direction="equal", detail=curves)
    floor = max(reference.observed_floor[name], 1e-15)
    off = [abs(got - true) / abs(true) if true else abs(got) for got, true in zip(found, truth, strict=True)]
    ratios = [error / floor if error == error else float("inf") for error in off]
    step = max(range(len(ratios)), key=lambda index: ratios[index])
    text = f"{ratios[step]:.2g} × floor {floor:.2g} (bound {MARGIN:g} ×) at step {step + 1}: "
    text += f"{found[step]:.6g} for {truth[step]:.6g}"
    verdict = "pass" if ratios[step] <= MARGIN else "fail"
    detail = {**curves, "error": off[step]}  # by which findings know it: floors depend on the CPU
    return Measurement("trace", name, ratios[step], "× floor", verdict, text, bound=MARGIN, detail=detail)
