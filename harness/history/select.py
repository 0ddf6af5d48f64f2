"""Names of runs on the command line: an id, ``latest``, ``latest~1``, or a range of dates."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from harness.store import StoreError

USAGE = "give a run's id (plumbline records --runs), latest, latest~1, or dates as in 2026-11-01..2026-11-20"


def select(runs: Sequence[Mapping[str, Any]], text: str) -> list[str]:
    """The runs that ``text`` names, the oldest first. ``runs``: the store's, the newest first. A range includes both of
    its days, and may leave out one of them. Runs without records are never meant, except by their id."""
    ids = [found["run"] for found in runs]
    if text in ids:
        return [text]
    filled = [found for found in runs if found["records"]]
    if latest := re.fullmatch(r"latest(?:~(\d+))?", text):
        back = int(latest[1] or 0)
        if back < len(filled):
            return [filled[back]["run"]]
        raise StoreError(f"run {text!r}: the store has {len(filled)} runs with records")
    if dates := re.fullmatch(r"(\d{4}-\d\d-\d\d)?\.\.(\d{4}-\d\d-\d\d)?", text):
        first, last = dates[1] or "", dates[2] or "9999"
        if found := [each["run"] for each in reversed(filled) if first <= each["started"][:10] <= last]:
            return found
        days = f", which has runs from {filled[-1]['started'][:10]} to {filled[0]['started'][:10]}" if filled else ""
        raise StoreError(f"runs {text!r}: none in the store{days}")
    near = get_close_matches(text, [*ids, "latest"], n=1)
    raise StoreError(f"run {text!r} is unknown{f' (did you mean {near[0]}?)' if near else ''}; {USAGE}")
