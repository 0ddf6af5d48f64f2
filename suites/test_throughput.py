"""Step times of all engines in interleaved rounds; the reference is no toy beside the fastest."""

import pytest

from harness.replay import replay


@pytest.mark.throughput
def test_throughput(case, lab, require, benchmark, clock):
    found = lab.throughput(case)
    require(found)
    replay(benchmark, clock, found[0].detail["samples"], {"case": case.id})
