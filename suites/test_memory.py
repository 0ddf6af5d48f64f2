"""Every engine holds the bytes that its technique promises, and the reference no more than the leanest engine."""

import pytest


@pytest.mark.memory
def test_memory(case, lab, require):
    require(lab.memory(case))
