"""Measured against what a paper promises."""

from harness.spec import Finding, Law


def judge(law: Law, promised: float, value: float, unit: str, padding: float = 0.0) -> Finding:
    """Pass within the law's tolerance; a tolerance of 0 is to the unit. What the engine is known to add for alignment
    (``padding``, in the same unit) is named and taken off first. Less memory than promised is no failure.
    """
    allowed = max(law.tolerance * promised, 0.5)  # half a unit: shares of buffers that N does not divide
    off = value - padding - promised
    lean = law.measure == "memory" and off < -allowed
    text = f"measured {value:,.0f} {unit}, promised {promised:,.0f} ({value / promised - 1:+.2%})"
    if padding:
        text += f", of which {padding:,.0f} are padding"
    if lean:
        text += ", leaner than promised"
    return Finding(
        law.measure,
        law.quantity,
        value,
        unit,
        "pass" if abs(off) <= allowed or lean else "fail",
        f"{text}; {law.source}",
        law=promised,
        bound=promised + padding + law.tolerance * promised,
        direction="lower" if law.measure == "memory" else "equal",
        detail={"padding": padding},
    )
