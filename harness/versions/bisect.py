"""Finds the first release in which a finding's state changes, by bisection; some releases cannot be judged."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from harness.versions.model import UNKNOWN, Cell

Judge = Callable[[str], Cell]


def bisect(versions: Sequence[str], judge: Judge) -> dict[str, Cell]:
    """The states of the releases that were judged, in the order in which they were. ``versions``: the oldest first. The
    ends are judged first; where one cannot be, the next one further in is the end."""
    found: dict[str, Cell] = {}

    def state(index: int) -> str:
        version = versions[index]
        if version not in found:
            found[version] = judge(version)
        return found[version].state

    low, high = 0, len(versions) - 1
    while low < high and state(low) == UNKNOWN:
        low += 1
    while high > low and state(high) == UNKNOWN:
        high -= 1
    if low == high or state(low) == state(high):
        return found
    while inside := [i for i in range(low + 1, high) if versions[i] not in found or state(i) != UNKNOWN]:
        middle = min(inside, key=lambda i: (abs(2 * i - low - high), i))
        if state(middle) == UNKNOWN:
            continue
        low, high = (middle, high) if state(middle) == state(low) else (low, middle)
    return found


def change(versions: Sequence[str], found: dict[str, Cell]) -> tuple[str, str] | None:
    """The last release before the change and the first after it; None if all that were judged agree."""
    known = [version for version in versions if version in found and found[version].state != UNKNOWN]
    for before, after in pairwise(known):
        if found[before].state != found[after].state:
            return before, after
    return None
