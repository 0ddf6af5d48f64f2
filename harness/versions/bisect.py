"""Finds the releases in which a finding's state changes, by bisection; some releases cannot be judged."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from harness.versions.model import UNKNOWN, Cell

Judge = Callable[[str], Cell]


def bisect(versions: Sequence[str], judge: Judge, hints: Iterable[str] = ()) -> dict[str, Cell]:
    """The states of the releases that were judged, in the order in which they were. ``versions``: the oldest first. The
    ends are judged first; where one cannot be, the next one further in is the end. If both ends have the same state,
    ``hints`` (releases in which it may be another) are judged, and both sides of the first one where it is are
    searched."""
    search = _Search(versions, judge)
    low, high = search.ends()
    if search.state(low) != search.state(high):
        search.narrow(low, high)
        return search.found
    for middle in (versions.index(hint) for hint in hints if hint in versions[low:high]):
        if search.state(middle) not in (UNKNOWN, search.state(low)):
            search.narrow(low, middle)
            search.narrow(middle, high)
            break
    return search.found


class _Search:
    def __init__(self, versions: Sequence[str], judge: Judge) -> None:
        self.versions, self.judge = versions, judge
        self.found: dict[str, Cell] = {}

    def state(self, index: int) -> str:
        version = self.versions[index]
        if version not in self.found:
            self.found[version] = self.judge(version)
        return self.found[version].state

    def ends(self) -> tuple[int, int]:
        low, high = 0, len(self.versions) - 1
        while low < high and self.state(low) == UNKNOWN:
            low += 1
        while high > low and self.state(high) == UNKNOWN:
            high -= 1
        return low, high

    def narrow(self, low: int, high: int) -> None:
        """Judges releases between two of different states until none is left between two neighbours that differ."""
        while inside := [index for index in range(low + 1, high) if self.versions[index] not in self.found]:
            middle = min(inside, key=lambda index: (abs(2 * index - low - high), index))
            if self.state(middle) != UNKNOWN:
                low, high = (middle, high) if self.state(middle) == self.state(low) else (low, middle)


def change(versions: Sequence[str], found: dict[str, Cell]) -> tuple[str, str] | None:
    """The last release before the change and the first after it; None if all that were judged agree."""
    known = [version for version in versions if version in found and found[version].state != UNKNOWN]
    for before, after in pairwise(known):
        if found[before].state != found[after].state:
            return before, after
    return None
