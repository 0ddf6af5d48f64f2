"""The link between the parts of a world that are on different nodes."""

import contextlib
from collections.abc import Callable
from multiprocessing import Pipe


class Elsewhere:
    """For a part of a world: ``tell`` is called at its first failure; ``ready`` can be read once a rank on another node
    has failed."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell = tell
        self.failed = False
        self.ready, self._write = Pipe(duplex=False)

    def fail(self) -> None:
        """A rank on another node has failed."""
        self.failed = True
        with contextlib.suppress(OSError):  # closed meanwhile
            self._write.send_bytes(b"")

    def close(self) -> None:
        self.ready.close()
        self._write.close()
