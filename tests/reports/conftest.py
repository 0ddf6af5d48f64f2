import pytest

from reports.render import render
from tests.reports import planted


@pytest.fixture(scope="session")
def html() -> str:
    return render(planted.records(), planted.run())
