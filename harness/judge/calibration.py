"""The measurements behind parity's margins: the ratios of honest runs and of planted faults."""

import json
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_suffix(".json")


def read() -> dict[str, Any]:
    """The instruction sets and seeds, and a line for each quantity and precision."""
    found: dict[str, Any] = json.loads(TABLE.read_text())
    return found
