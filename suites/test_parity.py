"""Every engine computes what the float64 model computes, up to the noise of its precision."""

import pytest


@pytest.mark.parity
def test_parity(case, lab, require):
    require(lab.parity(case))
