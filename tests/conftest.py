"""For all tests: warnings are errors, and suites run as a user runs them."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = "pytester"

# The sessions that tests start are a user's, and not processes of the session that tests them.
for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
    del os.environ[name]

# Several processes and their ranks share few cores: how long an example takes says nothing. What tests share between
# examples are worlds of ranks, which outlive them.
settings.register_profile(
    "plumbline", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("plumbline")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    config.addinivalue_line("markers", "slow: left out unless asked for, -m slow: together they take an hour")


@pytest.fixture
def user(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A separate folder, with this machine's compiled allocator."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return pytester
