"""Bands are measured from stores: widened, rounded outwards, and kept where they were derived otherwise."""

import tomllib

import pytest

from harness.spec import Measurement
from tests.findings.bands import Failure, band, rewritten
from tests.findings.examples import RECORD, SYMPTOM

PEAK = Measurement("memory", "peak", 133.0, "B", "fail", "too much", law=100.0)
LOSS = Measurement("parity", "loss", 80.0, "× floor", "fail", "off", detail={"error": 0.03})
CASE = "zero3-deepspeed-dp2-fp32"


@pytest.mark.parametrize(
    ("measurements", "expected"),
    [
        ([PEAK], (1.22, 1.44)),  # a third of the excess over the law
        ([PEAK, PEAK.but(value=150.0)], (1.22, 1.67)),
        ([PEAK.but(value=100.3)], (1.002, 1.004)),
        ([PEAK.but(value=0.0)], (0.0, 0.34)),
        ([LOSS], (0.02, 0.04)),  # a third of the error
        ([LOSS.but(detail={"error": None})], None),
    ],
)
def test_a_band_is_the_range_seen_and_a_third_on_both_sides(
    measurements: list[Measurement], expected: tuple[float, float] | None
) -> None:
    assert band(Failure(CASE, each) for each in measurements) == expected


def test_a_band_is_written_and_one_with_a_comment_is_kept() -> None:
    kept = SYMPTOM.replace("[1.2, 1.4]", "[1.2, 1.3]  # by the law")
    told: list[str] = []
    text, spoken = rewritten(
        RECORD + SYMPTOM.replace("band = [1.2, 1.4]\n", "") + kept,
        [Failure(CASE, PEAK), Failure(CASE, LOSS)],
        told.append,
    )
    first, second = tomllib.loads(text)["symptoms"]
    assert (first["band"], second["band"]) == ([1.22, 1.44], [1.2, 1.3])
    assert spoken == {0}  # no symptom speaks of the loss
    assert "1 failures, 1.33 to 1.33, band = [1.22, 1.44]" in told[0]
    assert told[1].endswith("kept [1.2, 1.3], OUTSIDE")
