"""For all tests: warnings are errors, and suites can be run as a user runs them."""

import pytest

pytest_plugins = "pytester"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    config.addinivalue_line("markers", "slow: takes more than a minute on a quiet core")
