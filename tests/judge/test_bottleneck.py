"""What bounds a step: the parts add up or nothing is concluded, and waiting is communication only as far as that takes
time on this machine."""

import pytest

from harness.judge import bottleneck
from harness.spec import Measurement
from harness.spec.run import Anatomy, Ceilings, Operations, Profile

LIMITS = Ceilings(flops=1e9, bandwidth=1e9, collectives={"all_reduce": (0.001, 1e6), "send": (0.002, 1e5)})
SENT = {"all_reduce": {"calls": 3.0, "bytes": 7000.0, "control": 0.0}}  # 3 ms and 7 ms


def judged(
    parts: dict[str, float], step: float = 0.1, sent: Operations | None = None, flops: float = 0.0
) -> Measurement:
    anatomy = Anatomy(**{"arithmetic": 0.0, "memory": 0.0, "waiting": 0.0, "host": 0.0, **parts})
    profile = Profile([9.0, step], [anatomy._replace(host=5.0), anatomy], flops, 0.0)  # the first was disturbed
    return bottleneck.judge([profile], [LIMITS], [sent] if sent else [])


@pytest.mark.parametrize(
    ("part", "bound"),
    [("arithmetic", "arithmetic"), ("memory", "memory"), ("waiting", "communication"), ("host", "host")],
)
def test_the_largest_part_bounds_a_step_and_the_text_gives_advice(part: str, bound: str) -> None:
    rest = dict.fromkeys(("arithmetic", "memory", "waiting", "host"), 0.01)
    found = judged({**rest, part: 0.07})
    assert (found.verdict, found.detail["bound"]) == ("pass", bound)
    assert found.detail["shares"][bound] == pytest.approx(0.7)
    assert sum(found.detail["shares"].values()) == pytest.approx(1)
    assert bottleneck.ADVICE[bound] in found.reason


@pytest.mark.parametrize(("step", "verdict"), [(0.104, "pass"), (0.11, "inconclusive"), (0.09, "inconclusive")])
def test_parts_that_do_not_add_up_to_the_step_conclude_nothing(step: float, verdict: str) -> None:
    assert judged({"arithmetic": 0.1}, step).verdict == verdict


def test_waiting_beyond_the_time_of_the_messages_is_idle() -> None:
    shares = judged({"memory": 0.05, "waiting": 0.05}, sent=SENT).detail["shares"]
    assert shares["communication"] == pytest.approx(0.1)
    assert shares["idle"] == pytest.approx(0.4)


def test_hidden_communication_is_not_waited_for() -> None:
    found = judged({"memory": 0.05, "waiting": 0.05, "hidden": 0.008}, sent=SENT)
    assert found.detail["shares"]["communication"] == pytest.approx(0.02)
    assert "8% of the step is hidden" in found.reason


def test_an_unmeasured_collective_takes_as_long_as_the_slowest() -> None:
    assert LIMITS.wire({"gather": {"calls": 1.0, "bytes": 100.0, "control": 0.0}}) == pytest.approx(0.003)


def test_products_are_compared_with_the_ceiling_where_they_matter() -> None:
    assert "products run at 50% of this machine's ceiling" in judged({"arithmetic": 0.1}, flops=5e7).reason
    assert "under disturbance" in judged({"arithmetic": 0.1}, flops=5e8).reason
    assert "ceiling" not in judged({"host": 0.1}, flops=5e7).reason


def test_the_parts_of_ranks_are_averaged_and_the_slowest_rank_decides_the_step() -> None:
    busy = Profile([0.1], [Anatomy(0.1, 0.0, 0.0, 0.0)], 0.0, 0.0)
    idle = Profile([0.08], [Anatomy(0.02, 0.0, 0.08, 0.0)], 0.0, 0.0)
    found = bottleneck.judge([busy, idle], [LIMITS, LIMITS], [{}, {}])
    assert found.detail["step"] == 0.1
    assert found.detail["shares"] == pytest.approx(
        {"arithmetic": 0.6, "memory": 0.0, "communication": 0.0, "idle": 0.4, "host": 0.0}
    )
