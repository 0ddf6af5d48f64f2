"""Measured against what a paper promises."""

from typing import Any

from harness.spec import Finding, Law


def judge(law: Law, promised: float, value: float, unit: str, padding: float = 0.0) -> Finding:
    """Pass within the law's tolerance on either side; a tolerance of 0 is to the unit, named padding apart.

    ``padding``: what the engine is known to add for alignment, in the same unit.
    """
    allowed = law.tolerance * promised
    off = value - padding - promised
    good = abs(off) <= max(allowed, 0.5)  # half a unit: shares of buffers that N does not divide
    text = f"measured {value:,.0f} {unit}, promised {promised:,.0f} ({value / promised - 1:+.2%})"
    if padding:
        text += f", of which {padding:,.0f} are padding"
    text += f"; {law.source}"
    detail: dict[str, Any] = {"padding": padding}
    return Finding(
        law.measure,
        law.quantity,
        value,
        unit,
        "pass" if good else "fail",
        text,
        law=promised,
        bound=promised + padding + allowed,
        direction="equal",
        detail=detail,
    )
