"""Figures as text: binary units for bytes, SI units for the rest, one narrow space before the unit."""

import math
from datetime import datetime
from typing import Any

SPACE = "\u202f"  # narrow no-break space
NONE = "–"
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SECOND_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def figure(value: float | None, unit: str) -> str:
    """``figure(2048, "bytes")`` → ``2.00 KiB``; None (not measured) is a dash."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if unit in ("bytes", "B"):
        scale, name = byte_unit(abs(value))
        return f"{value:.0f}{SPACE}B" if name == "B" else f"{significant(value / scale)}{SPACE}{name}"
    if unit in ("s", "seconds"):
        scale, name = second_unit(abs(value))
        return f"{significant(value / scale)}{SPACE}{name}"
    if unit == "× floor":
        return f"{significant(value)}×"
    return f"{significant(value)}{SPACE}{unit}" if unit else significant(value)


def byte_unit(size: float) -> tuple[float, str]:
    """The unit that shows ``size`` bytes with one to four digits before the point, as (bytes per unit, name)."""
    power = min(max(int(math.log(size, 1024)) if size >= 1 else 0, 0), len(_BYTE_UNITS) - 1)
    return 1024.0**power, _BYTE_UNITS[power]


def second_unit(seconds: float) -> tuple[float, str]:
    return next((unit for unit in _SECOND_UNITS if seconds >= unit[0]), _SECOND_UNITS[-1])


def si(value: float | None, unit: str) -> str:
    """``si(12_345, "tokens/s")`` → ``12.3 k tokens/s``."""
    if value is None or not math.isfinite(value):
        return NONE
    scale, prefix = next((unit for unit in _SI if abs(value) >= unit[0]), (1.0, ""))
    return f"{significant(value / scale)}{SPACE}{prefix}{' ' if len(unit) > 3 and prefix else ''}{unit}"


def significant(value: float) -> str:
    """Three significant digits; powers of ten outside 0.001 … 10⁶."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", "−")
    decimals = max(0, 2 - int(f"{size:.2e}".split("e")[1]))  # the exponent after rounding: 9.999 is 10.0
    return f"{value:,.{decimals}f}".replace("-", "−").replace(",", "\u2009")


def ratio(value: float | None) -> str:
    """``1.04×``, always with two decimals below ten, since ratios are compared with each other."""
    if value is None:
        return NONE
    return f"{value:.2f}×" if value < 9.995 else f"{significant(value)}×"


def share(value: float) -> str:
    """A relative size: ``0.8 %``; below a thousandth of a per cent a power of ten."""
    return f"{100 * value:.2g}{SPACE}%" if abs(value) >= 1e-5 else significant(value)


def moment(value: Any) -> str:
    """An ISO string or a datetime, to the minute."""
    if not value:
        return NONE
    when = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    zone = " UTC" if when.utcoffset() is not None and not when.utcoffset() else ""
    return f"{when:%Y-%m-%d %H:%M}{zone}"


def duration(started: Any, finished: Any) -> str:
    if not (started and finished):
        return NONE
    first, last = (v if isinstance(v, datetime) else datetime.fromisoformat(str(v)) for v in (started, finished))
    minutes, seconds = divmod(round((last - first).total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (seconds, "s")]
    return " ".join(f"{n}{SPACE}{name}" for n, name in parts if n) or f"0{SPACE}s"


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
