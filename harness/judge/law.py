"""A measured value compared with a paper's law."""

from dataclasses import replace

from harness import catalog
from harness.spec import Card, Case, Law, Measurement

FAR = 0.5  # × the promised value: a smaller figure suggests that the meter misses something


def against(
    card: Card, case: Case, measure: str, quantity: str, value: float, padding: float = 0.0, elements: int = 0
) -> Measurement:
    """Judges ``value`` by the card's law of the quantity, if the law applies to this case. ``padding``: the alignment
    that the engine reports, in the law's unit; ``elements`` of padding travel as the parameters do, so the law itself
    gives their bytes."""
    for law in card.laws:
        if (law.measure, law.quantity) == (measure, quantity):
            promised = catalog.load(law.formula)(case.workload, case.topology, **card.variants[case.variant])
            if promised is not None:
                if elements:
                    held = case.workload.model.parameters / (case.topology.tp * case.topology.pp)
                    padding = promised * elements / held
                if measure in ("traffic", "flops") and case.engine != "reference":  # a right engine may do less
                    law = replace(law, direction="at_most")
                return judge(law, promised, value, padding)
    return Measurement(measure, quantity, value, "B", "pass", f"{value:,.0f} B; no law applies here")


def judge(law: Law, promised: float, value: float, padding: float = 0.0) -> Measurement:
    """Passes within the law's tolerance; a tolerance of 0 means exact to the unit. The engine's alignment (at most
    ``padding``) is allowed on top. If the law says *at most*, a smaller value passes, and a far smaller one is
    inconclusive."""
    allowed = max(law.tolerance * promised, 0.5)  # half a unit: N does not divide some buffers evenly
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
            verdict, text = "inconclusive", f"{text}; the difference is so large that the meter may miss something"
    return Measurement(
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
