"""Measured against what a paper promises."""

from harness.spec import Finding, Law


def judge(law: Law, promised: float, value: float, unit: str, padding: float = 0.0) -> Finding:
    """Pass within the law's tolerance; a tolerance of 0 is to the unit. On top there may be what the engine says it
    adds for alignment (at most ``padding``, in the same unit). Less memory than promised is no failure.
    """
    allowed = max(law.tolerance * promised, 0.5)  # half a unit: shares of buffers that N does not divide
    off = value - promised
    lean = law.measure == "memory" and off < -allowed
    text = f"measured {value:,.0f} {unit}, promised {promised:,.0f}"
    if promised:
        text += f" ({value / promised - 1:+.2%})"
    if padding and off > allowed:
        text += f", of which {min(padding, off):,.0f} may be padding"
    if lean:
        text += ", leaner than promised"
    return Finding(
        law.measure,
        law.quantity,
        value,
        unit,
        "pass" if -allowed <= off <= allowed + padding or lean else "fail",
        f"{text}; {law.source}",
        law=promised,
        bound=promised + padding + law.tolerance * promised,
        direction="lower" if law.measure == "memory" else "equal",
        detail={"padding": padding},
    )
