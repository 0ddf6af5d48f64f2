"""Published figures of overlap compared with this session's.

All figures are from GPUs, whose copy engines and links work beside the arithmetic units. Here the ranks are CPU
processes, and the transfer uses the cores that compute: the measurements describe the technique on this device and do
not judge it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.spec import Measurement, assessed, measured

Records = Sequence[Mapping[str, Any]]
WORK = {"engine": "reference", "topology": "tp2", "workload": "halves", "dtype": "fp32"}


def domino_speedup(records: Records) -> Measurement:
    return _speedup("domino_speedup", 1.3, "domino", records)


def flux_speedup(records: Records) -> Measurement:
    return _speedup("flux_speedup", 1.24, "async_tp", records)


def flux_hidden(records: Records) -> Measurement:
    """96 % of the communication hidden."""
    figures = {"law": 0.96, "unit": "share of the communication's time"}
    found = measured(records, variant="async_tp", measure="timeline", quantity="hidden", **WORK)
    if not found:
        return assessed("flux_hidden", "out of reach here", "needs GPUs; nothing was watched in this run", **figures)
    reason = f"a fused kernel on GPUs; here, tile by tile between CPU ranks, {found[0]:.1%} is hidden"
    return assessed("flux_hidden", "out of reach here", f"{reason}; {_gain('async_tp', records)}", **figures)


def _speedup(name: str, published: float, variant: str, records: Records) -> Measurement:
    """Throughput with the technique ÷ without it."""
    figures = {"law": published, "unit": "× throughput"}
    reason = f"needs the GPUs of the paper; {_gain(variant, records)}"
    value = _ratio(f"{variant}_off", variant, records)
    return assessed(name, "out of reach here", reason, value=value, **figures)


def _gain(variant: str, records: Records) -> str:
    """The gain and the cost of overlap on the device of this run, in words."""
    pieces, whole = (_ratio(variant, f"{variant}_{other}", records) for other in ("waiting", "off"))
    if pieces is None or whole is None:
        return "this run has no step times of it"
    text = f"on CPU ranks a step takes {pieces:.2f} × that of the same pieces without overlap and {whole:.2f} × that "
    text += "of the whole"
    return text + ("" if whole < 1 else ": the device gains nothing from the hidden time")


def _ratio(variant: str, other: str, records: Records) -> float | None:
    """Seconds per step of the first ÷ the second's, from the same interleaved rounds."""
    found = [
        measured(records, variant=name, measure="throughput", quantity="step_time", **WORK) for name in (variant, other)
    ]
    return found[0][0] / found[1][0] if all(found) else None
