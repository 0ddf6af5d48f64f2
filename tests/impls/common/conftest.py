from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def offline() -> Iterator[None]:
    """Transformers looks for nothing outside; it is imported inside tests, hence after this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield
