"""The AIInfra course's figures for model parallelism: one checked by arithmetic, one by this session's traffic."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.spec import Measurement, Workload, assessed, measured

Records = Sequence[Mapping[str, Any]]


def boundary_traffic(records: Records) -> Measurement:
    """2·Σ sᵢ·b: activations cross a boundary forward and their gradients cross it backward; at pp2 each rank sends
    once."""
    work = Workload()
    promised = 2.0 * work.tokens * work.model.hidden_size * work.element_size
    arithmetic = (
        f"one boundary, b·s·h = {work.tokens} · {work.model.hidden_size} elements of {work.element_size} B: "
        + (f"2 × {promised / 2:,.0f} B a step")
    )
    figures = {"law": promised, "unit": "B"}
    sent = measured(
        records,
        engine="reference",
        topology="pp2",
        workload=work.name,
        dtype=work.dtype,
        measure="traffic",
        quantity="bytes",
    )
    if not sent:
        reason = "this run has no traffic of the reference at pp2"
        return assessed("boundary_traffic", "out of reach here", reason, arithmetic, **figures)
    both = 2 * sent[0]
    status = "reproduced" if both == promised else "contradicted"
    return assessed("boundary_traffic", status, f"both ranks send {both:,.0f} B", arithmetic, value=both, **figures)


def gpt3_weights(records: Records) -> Measurement:
    """175 B parameters of 4 bytes."""
    found = 175e9 * 4 / 1e9
    reason = "a model of that size cannot run here"
    arithmetic = f"175 · 10⁹ × 4 B = {found:.0f} GB of weights alone; with gradients and Adam's moments four times that"
    return assessed("gpt3_weights", "formula only", reason, arithmetic, value=found, law=700.0, unit="GB")
