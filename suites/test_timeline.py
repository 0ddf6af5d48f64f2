"""Every schedule idles no longer, and keeps no more micro-batches, than its law promises."""

import pytest


@pytest.mark.timeline
def test_timeline(case, lab, require):
    require(lab.timeline(case))
