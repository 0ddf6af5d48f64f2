"""The link between the parts of a world that are on different nodes."""

import contextlib
import os
from collections.abc import Callable


class Elsewhere:
    """For a part of a world: ``tell`` is called at its first failure; it can be waited for like a file, and is ready
    once a rank on another node has failed."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell = tell
        self.failed = False
        self._ready, self._write = os.pipe()

    def fileno(self) -> int:
        return self._ready

    def fail(self) -> None:
        """A rank on another node has failed."""
        self.failed = True
        with contextlib.suppress(OSError):  # closed meanwhile
            os.write(self._write, b".")

    def close(self) -> None:
        for descriptor in (self._ready, self._write):
            with contextlib.suppress(OSError):
                os.close(descriptor)
