"""Every engine learns as the float64 model does."""

import pytest


@pytest.mark.quality
def test_quality(case, lab, require):
    require(lab.quality(case))
