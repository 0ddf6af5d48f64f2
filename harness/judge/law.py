"""Measured against what a paper promises."""

from harness import catalog
from harness.spec import Card, Case, Finding, Law

FAR = 0.5  # of what is promised: less than so much is no saving that anybody announced, but rather something unseen


def against(
    card: Card, case: Case, measure: str, quantity: str, value: float, padding: float = 0.0, elements: int = 0
) -> Finding:
    """``value`` against the card's law of the quantity, if it promises something for this case. ``padding``: what the
    engine says it adds for alignment, in the law's unit; ``elements`` of it travel as the parameters do: their bytes
    follow from the law itself."""
    for law in card.laws:
        if (law.measure, law.quantity) == (measure, quantity):
            promised = catalog.load(law.formula)(case.workload, case.topology, **card.variants[case.variant])
            if promised is not None:
                if elements:
                    held = case.workload.model.parameters / (case.topology.tp * case.topology.pp)
                    padding = promised * elements / held
                return judge(law, promised, value, padding)
    return Finding(measure, quantity, value, "B", "pass", f"{value:,.0f} B; no law is stated for it here")


def judge(law: Law, promised: float, value: float, padding: float = 0.0) -> Finding:
    """Pass within the law's tolerance; a tolerance of 0 is to the unit. On top there may be what the engine says it
    adds for alignment (at most ``padding``). Where the law says *at most*, less is no failure; far less is
    inconclusive."""
    allowed = max(law.tolerance * promised, 0.5)  # half a unit: shares of buffers that N does not divide
    off = value - promised
    less = law.direction == "at_most" and off < -allowed
    text = f"measured {value:,.0f} {law.unit}, promised {promised:,.0f}"
    if promised:
        text += f" ({value / promised - 1:+.2%})"
    if padding and off > allowed:
        text += f", of which {min(padding, off):,.0f} may be padding"
    verdict = "pass" if less or -allowed <= off <= allowed + padding else "fail"
    if less:
        text += ", less than promised"
        if value < FAR * promised:
            verdict, text = "inconclusive", f"{text}, and so much less that the meter may not see all of it"
    return Finding(
        law.measure,
        law.quantity,
        value,
        law.unit,
        verdict,
        f"{text}; {law.source}",
        law=promised,
        bound=promised + padding + law.tolerance * promised,
        direction="lower" if law.direction == "at_most" else "equal",
        detail={"padding": padding},
    )
