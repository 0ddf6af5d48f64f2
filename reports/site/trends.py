"""The change points of all series, kept in the site's folder until the store has new records."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from harness.history import Alarm, Series
from harness.store import Store
from reports.site.folder import Folder

FILE = "alarms.json"
Seek = Callable[[Store], tuple[list[Alarm], str]]  # the alarms, and why there are none if they could not be sought


def alarms(store: Store, folder: Folder, seek: Seek, made: str, again: bool) -> tuple[list[Alarm], str]:
    """The alarms, and why there are none if they could not be sought, which is tried anew each time. ``made`` changes
    with every record."""
    if not again and folder.fresh(FILE, made):
        return stored(folder)
    found, note = seek(store)
    content = {"alarms": [asdict(replace(a, series=replace(a.series, points=()))) for a in found], "note": note}
    folder.write(FILE, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(), "" if note else made)
    return found, note


def stored(folder: Folder) -> tuple[list[Alarm], str]:
    """Those of the last publish."""
    if FILE not in folder.entries or not folder.fresh(FILE, folder.entries[FILE].made):
        return [], ""
    content = json.loads((folder.root / FILE).read_text("utf-8"))
    return [_alarm(entry) for entry in content["alarms"]], content["note"]


def unsought(store: Store) -> tuple[list[Alarm], str]:
    return [], "Change points were not sought."


def _alarm(entry: Mapping[str, Any]) -> Alarm:
    known = {field.name for field in fields(Series)}
    series = Series(**{name: value for name, value in entry["series"].items() if name in known})
    environment = {name: (old, new) for name, (old, new) in entry["environment"].items()}
    return Alarm(**{**entry, "series": series, "environment": environment})
