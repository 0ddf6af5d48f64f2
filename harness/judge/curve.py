"""A learning curve compared with the float64 model's."""

from collections.abc import Sequence

from harness.judge.parity import MARGIN
from harness.spec import Measurement


def judge(losses: Sequence[float], oracle: Sequence[float], floor: Sequence[float]) -> Measurement:
    """Passes if every loss is within the margin of the largest deviation of honest runs up to that step, and the curve
    falls. Deviations grow with the steps, for honest runs and engines alike."""
    worst, at, limit, first_off = 0.0, 0, 0.0, ""
    for step, (got, true) in enumerate(zip(losses, oracle, strict=True)):
        limit = max(limit, floor[step])
        error = abs(got / true - 1.0)
        ratio = error / max(limit, 1e-15) if error == error else float("inf")
        if ratio > MARGIN and not first_off:
            first_off = f"; first beyond the bound in step {step + 1}: {got:.6g} instead of {true:.6g}"
        if ratio > worst:
            worst, at = ratio, step
    tail = max(1, len(losses) // 10)
    first, last = sum(losses[:tail]) / tail, sum(losses[-tail:]) / tail
    text = f"loss {first:.4f} → {last:.4f} in {len(losses)} steps; at most {worst:.2g} × the floor, at step {at + 1}"
    text += f" (bound {MARGIN:g} ×){first_off}"
    good = worst <= MARGIN and last < first
    if not last < first:
        text += "; the loss does not fall"
    detail = {"losses": list(losses), "oracle_losses": list(oracle)}
    return Measurement("quality", "loss", last, "nats", "pass" if good else "fail", text, law=oracle[-1], detail=detail)
