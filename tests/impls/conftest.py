"""Fixtures that the tests of topics share."""

from collections.abc import Iterator

import pytest

from harness.lab import Lab
from harness.launch.local import LocalLauncher


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A Lab of the test module's ``CARDS``, or of its ``CARD`` alone, on up to eight ranks; nothing is recorded."""
    module = request.module
    cards = getattr(module, "CARDS", None) or {module.CARD.name: module.CARD}
    lab = Lab(cards, [], LocalLauncher(), lambda *_: None, capacity=8)
    yield lab
    lab.close()
