"""Converts a measurement to a row of the store, in types that both databases and JSON can hold."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from harness.spec import Case, Measurement
from harness.store.redact import redact

# Old case id → current id. An id is never renamed without an entry here, since the case's history depends on it.
ALIASES: Mapping[str, str] = MappingProxyType({})


def now() -> str:
    """UTC in ISO 8601, always with microseconds, so that it sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def row(run: str, case: Case, device: str, measurement: Measurement, recorded: str) -> dict[str, Any]:
    """The row of ``measurement``, keyed by the columns of the table of records."""
    names = {
        "run": run,
        "case": case.id,
        "topic": case.topic,
        "variant": case.variant,
        "engine": case.engine,
        "topology": str(case.topology),
        "workload": case.workload.name,
        "dtype": case.workload.dtype,
        "device": device,
        "measure": measurement.measure,
        "quantity": measurement.quantity,
        "unit": measurement.unit,
        "verdict": measurement.verdict,
        "reason": measurement.reason,
        "direction": measurement.direction,
    }
    figures = {"value": measurement.value, "law": measurement.law, "bound": measurement.bound}
    return {
        **{name: storable(text) for name, text in names.items()},
        **{name: None if figure is None else plain(float(figure)) for name, figure in figures.items()},
        "detail": plain(measurement.detail),
        "recorded": recorded,
    }


def plain(value: Any) -> Any:
    """``value`` in JSON's own types.

    NaN and ±inf become null, since JSON does not define them and PostgreSQL rejects them. Objects with ``tolist``
    (numpy's scalars and arrays, tensors) become numbers and lists; tuples become lists, and keys become text.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Mapping):
        return {storable(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(
        f"a {type(value).__name__} cannot be stored: {value!r}; allowed: None, bool, int, float, str, "
        "mappings, lists, tuples, numpy scalars and arrays"
    )


def storable(text: str) -> str:
    """``text`` as UTF-8 without NUL, which PostgreSQL cannot store, and without passwords: a crashed rank's output may
    contain anything."""
    return redact(text).replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "backslashreplace").decode()
