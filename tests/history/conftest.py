from pathlib import Path

import pytest

from harness.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "history.db"))
