"""A Lab like a session's, for tests that measure without a session."""

from collections.abc import Mapping, Sequence

from harness.launch.base import Launcher
from harness.launch.local import LocalLauncher
from harness.run.lab import Lab
from harness.run.recorder import Recorder, Write
from harness.run.runner import Runner
from harness.spec import Card, Finding


def make(
    cards: Mapping[str, Card],
    write: Write = lambda case, measurements: None,
    findings: Sequence[Finding] = (),
    launcher: Launcher | None = None,
    capacity: int = 4,
) -> Lab:
    """The caller closes its runner."""
    return Lab(Runner(cards, launcher or LocalLauncher(), capacity=capacity), Recorder(write, findings))
