"""The table of releases: a dataclass, and the JSON file that holds it (``versions.json``)."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

WRONG, RIGHT, UNKNOWN = "wrong", "right", "could not be judged"
FORMAT = 1


@dataclass(frozen=True)
class Cell:
    """A finding in one release. ``by``: script or cases. A state that could not be judged has its reason."""

    state: str
    reason: str = ""
    by: str = "script"


@dataclass(frozen=True)
class Release:
    """``reason`` says why nothing of this release could be judged: it was not installed, or could not be imported.
    ``errors``: how many measurements ended in each error (its first line), or require another release, which is no
    verdict about this one; ``judged``: how many passed or failed."""

    version: str
    reason: str = ""
    run: str = ""  # of its cases in the store
    errors: Mapping[str, int] = field(default_factory=dict)
    judged: int = 0


@dataclass(frozen=True)
class FindingRow:
    """``cells`` by version. ``steps``: the versions in the order in which a bisection judged them."""

    finding: str
    title: str
    kind: str
    consequence: str
    cells: Mapping[str, Cell]
    steps: tuple[str, ...] = ()
    summary: str = ""


@dataclass(frozen=True)
class CaseRow:
    """A case that passes in some releases and fails in others, where no finding covers the failure."""

    case: str
    measure: str
    verdicts: Mapping[str, str]  # by version
    reasons: Mapping[str, str]  # of its failures, by version


@dataclass(frozen=True)
class Versions:
    """Releases of a package, the oldest first. ``environment`` is that of a run in the store: what they ran beside."""

    package: str
    started: str  # UTC, ISO 8601
    command: str
    environment: Mapping[str, Any]
    releases: tuple[Release, ...]
    findings: tuple[FindingRow, ...] = ()
    cases: tuple[CaseRow, ...] = ()
    format: int = FORMAT


def summary(releases: tuple[str, ...], cells: Mapping[str, Cell]) -> str:
    """``right until 0.19.6, wrong from 0.19.7``; releases that could not be judged in between are named."""
    known = [version for version in releases if version in cells and cells[version].state != UNKNOWN]
    if not known:
        return UNKNOWN
    groups = [(state, list(group)) for state, group in groupby(known, lambda version: cells[version].state)]
    if len(groups) == 1:
        where = known[0] if len(known) == 1 else f"all {len(known)} that were judged, {known[0]} to {known[-1]}"
        return f"{groups[0][0]} in {where}"
    said = [f"{groups[0][0]} until {groups[0][1][-1]}"]
    for number, (state, group) in enumerate(groups[1:], start=1):
        until = f" to {group[-1]}" if number < len(groups) - 1 and len(group) > 1 else ""
        said.append(f"{state} from {group[0]}{until}{_between(releases, groups[number - 1][1][-1], group[0], cells)}")
    return ", ".join(said)


def _between(releases: tuple[str, ...], before: str, after: str, cells: Mapping[str, Cell]) -> str:
    inside = releases[releases.index(before) + 1 : releases.index(after)]
    unknown = [version for version in inside if version in cells]
    return f" ({', '.join(unknown)} could not be judged)" if unknown else ""


def write(path: Path, table: Versions) -> None:
    """Replaces the file at once, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(asdict(table), indent=1, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(path)


def read(path: Path) -> Versions:
    """A ValueError says what is wrong with the file."""
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']}, and this Plumbline reads {FORMAT}")
        table: Versions = _typed(Versions, found)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no table of versions that plumbline versions has written: {error}") from None
    return table


def _typed(hint: Any, value: Any) -> Any:
    """JSON's lists and objects as the tuples and dataclasses of the hint."""
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        hints = get_type_hints(hint)
        known = {each.name for each in fields(hint)}
        return hint(**{name: _typed(hints[name], item) for name, item in value.items() if name in known})
    if get_origin(hint) is tuple:
        return tuple(_typed(get_args(hint)[0], item) for item in value)
    if get_origin(hint) is not None:
        return {key: _typed(get_args(hint)[1], item) for key, item in value.items()}
    return value
