"""Failures that do not fail a night for some time, each with somebody who will look at it."""

import datetime
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Entry:
    """``case`` is a pattern of cases' ids (``*``, ``?`` and ``[…]``), ``until`` the last day on which it counts;
    ``measure``: only this one."""

    case: str
    owner: str
    until: datetime.date
    reason: str
    measure: str = ""

    def matches(self, measure: str, case: str) -> bool:
        return self.measure in ("", measure) and fnmatchcase(case, self.case)

    def expired(self, today: datetime.date) -> bool:
        return self.until < today

    def __str__(self) -> str:
        return f"{self.case}{f' {self.measure}' if self.measure else ''} ({self.owner}, until {self.until})"


def split(
    found: Iterable[Mapping[str, Any]], entries: Sequence[Entry], today: datetime.date
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """``found`` (dicts with measure and case) without those in quarantine, and those, with owner, until and why."""
    free, held = [], []
    for each in found:
        entry = next(
            (e for e in entries if not e.expired(today) and e.matches(each["measure"], each["case"])),
            None,
        )
        if entry is None:
            free.append(dict(each))
        else:
            held.append({**each, "owner": entry.owner, "until": str(entry.until), "why": entry.reason})
    return free, held


def problems(entries: Sequence[Entry], tests: Collection[tuple[str, str]] | None, today: datetime.date) -> list[str]:
    """The entries that fail the night: those that are expired, and those that match none of its ``tests`` (measure and
    case), where these are known."""
    found = []
    for entry in entries:
        if entry.expired(today):
            found.append(f"{entry} is expired: repair it, or set a later day")
        elif tests is not None and not any(entry.matches(*test) for test in tests):
            found.append(f"{entry} matches no case of this night: remove it")
    return found
