"""One measured figure with its judgement: the product of meters and judges, and the unit of the store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# From worst to best: a case is as bad as its worst measurement.
VERDICTS = ("error", "fail", "invalid", "inconclusive", "skipped", "pass")
DIRECTIONS = ("lower", "higher", "equal")


@dataclass(frozen=True)
class Measurement:
    """``value`` in ``unit``; ``law``: the promised value; ``bound``: the limit that still passes; ``reason`` for
    people."""

    measure: str
    quantity: str
    value: float | None
    unit: str
    verdict: str
    reason: str
    law: float | None = None
    bound: float | None = None
    direction: str = "lower"
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict {self.verdict!r} is none of {', '.join(VERDICTS)}")
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction {self.direction!r} is none of {', '.join(DIRECTIONS)}")

    @property
    def size(self) -> float | None:
        """How large the figure is, whatever the machine: parity's relative error (floors depend on the CPU), the value
        over its law, or the value itself where no law, or a law of 0, is given."""
        if "error" in self.detail:
            error: float | None = self.detail["error"]
            return error
        return self.value / self.law if self.value is not None and self.law else self.value

    def but(self, **changes: Any) -> "Measurement":
        return replace(self, **changes)


def worst(measurements: list[Measurement]) -> Measurement:
    """The measurement that decides: the first of the worst verdict."""
    return min(measurements, key=lambda measurement: VERDICTS.index(measurement.verdict))


_CLAIM_VERDICTS = {
    "reproduced": "pass",
    "contradicted": "fail",  # the claim fails, not one of our engines
    "formula only": "inconclusive",
    "out of reach here": "skipped",
}
STATUSES = tuple(_CLAIM_VERDICTS)


def assessed(name: str, status: str, reason: str, arithmetic: str = "", **figures: Any) -> Measurement:
    """The outcome of a published claim. ``figures``: ``value`` measured, ``law`` published, ``unit``."""
    figures = {"value": None, "unit": "ratio", "direction": "equal", **figures}
    detail = {"status": status, "arithmetic": arithmetic, **figures.pop("detail", {})}
    return Measurement("claim", name, verdict=_CLAIM_VERDICTS[status], reason=reason, detail=detail, **figures)


def measured(records: Sequence[Mapping[str, Any]], **equals: object) -> list[float]:
    """The values of the records in which all these columns are equal."""
    return [
        float(record["value"])
        for record in records
        if record["value"] is not None and all(record.get(name) == value for name, value in equals.items())
    ]
