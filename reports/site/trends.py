"""The change points of all series, kept in the site's folder until the store has new records."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from importlib import import_module
from typing import Any

from harness.history import Alarm, Series
from harness.store import Store
from reports.site.folder import Folder

FILE = "alarms.json"


def alarms(store: Store, folder: Folder, made: str, again: bool) -> tuple[list[Alarm], str]:
    """The alarms, and why there are none if they could not be sought, which is tried anew each time. ``made`` changes
    with every record."""
    if not again and folder.fresh(FILE, made):
        stored = json.loads((folder.root / FILE).read_text("utf-8"))
        return [_alarm(entry) for entry in stored["alarms"]], stored["note"]
    found, note = _sought(store)
    content = {"alarms": [asdict(replace(a, series=replace(a.series, points=()))) for a in found], "note": note}
    folder.write(FILE, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(), "" if note else made)
    return found, note


def _sought(store: Store) -> tuple[list[Alarm], str]:
    try:
        series = import_module("harness.history.series").series
        trend = import_module("harness.history.trend").trend
        return list(trend(series(store))), ""
    except ImportError as error:
        return [], f"Change points were not sought: {error}"


def _alarm(entry: Mapping[str, Any]) -> Alarm:
    known = {field.name for field in fields(Series)}
    series = Series(**{name: value for name, value in entry["series"].items() if name in known})
    environment = {name: (old, new) for name, (old, new) in entry["environment"].items()}
    return Alarm(**{**entry, "series": series, "environment": environment})
