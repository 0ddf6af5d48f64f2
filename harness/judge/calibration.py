"""The measurements behind the verdicts: the ratios of honest runs and of planted faults, and which measure sees which
fault."""

import json
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_suffix(".json")
KILLS = TABLE.with_name("kills.json")


def read() -> dict[str, Any]:
    """The instruction sets and seeds, and a line for each quantity and precision."""
    found: dict[str, Any] = json.loads(TABLE.read_text())
    return found


def kills() -> list[dict[str, Any]]:
    """A row for each planted fault: its topic, what is broken, and the figures of each measure that fail."""
    found: list[dict[str, Any]] = json.loads(KILLS.read_text("utf-8"))
    return found
