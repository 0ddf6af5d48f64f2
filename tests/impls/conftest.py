"""Fixtures that the tests of topics share."""

from collections.abc import Iterator

import pytest

from harness.run.lab import Lab
from tests import labs


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A Lab of the test module's ``CARDS``, or of its ``CARD`` alone, on up to eight ranks; nothing is recorded."""
    module = request.module
    cards = getattr(module, "CARDS", None) or {module.CARD.name: module.CARD}
    lab = labs.make(cards, capacity=8)
    yield lab
    lab.runner.close()
