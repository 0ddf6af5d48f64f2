"""Adds a session's measurements to its run, and holds back those that the store refuses."""

from collections.abc import Sequence

from harness.spec import Case, Measurement
from harness.store.schema import StoreError
from harness.store.store import Store


class Writer:
    """Measurements that a full disk or a lost server refuses stay in memory, and are tried again with the next ones:
    nothing is lost if the cause goes away before the session ends."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run
        self._held: list[tuple[Case, str, Sequence[Measurement]]] = []

    def add(self, case: Case, device: str, measurements: Sequence[Measurement]) -> str:
        """A line about the cause if the measurements are the first that had to be held back; else nothing."""
        before = len(self._held)
        self._held.append((case, device, measurements))
        try:
            self.flush()
        except StoreError as error:
            return "" if before else f"{error}; until then, measurements are held in memory"
        return ""

    def flush(self) -> None:
        """Stores what was held back; a :class:`StoreError` tells how much of it is lost if the session ends now."""
        while self._held:
            held = self._held.pop(0)
            try:
                self._store.add(self._run, *held)
            except StoreError as error:
                self._held.insert(0, held)
                count = sum(len(measurements) for _, _, measurements in self._held)
                raise StoreError(f"{count} measurements are not stored: {error}") from None
