"""Every rank sends the bytes that its technique promises."""

import pytest


@pytest.mark.traffic
def test_traffic(case, lab, require):
    require(lab.traffic(case))
