"""For all tests: warnings are errors, and suites can be run as a user runs them."""

import os
from pathlib import Path

import pytest

pytest_plugins = "pytester"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    config.addinivalue_line("markers", "slow: takes more than a minute on a quiet core")


@pytest.fixture
def user(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder of one's own, in which the compiled allocator of this machine is used again."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return pytester
