"""Watched communication: its hidden share, its exposed share, and its count."""

import pytest

from harness.judge import overlap, timeline
from harness.spec import Law, Measurement, Span

LAWS = {"flights": Law("timeline", "flights", "", 0.0, "a paper")}


def one_rank(wait: float = 1.0, flights: int = 1) -> list[Span]:
    """Issues at 2 s, computes until 5 s, waits, and computes again for 1 s."""
    end = 5.0 + wait
    return [
        Span("F", 0, 0, 0.0, 2.0),
        *[Span("C", 0, 0, 2.0, end)] * flights,
        Span("B", 0, 0, 2.0, 5.0),
        Span("X", 0, 0, 5.0, end),
        Span("F", 1, 0, end, end + 1.0),
    ]


def judged(
    rounds: list[list[list[Span]]], cores: int = 2, promised: float = 1.0, disturbed: bool = False
) -> dict[str, Measurement]:
    found = timeline.judge(rounds, cores, {"flights": promised}, LAWS, disturbed)
    return {measurement.quantity: measurement for measurement in found}


def test_only_computation_of_the_same_rank_hides_communication() -> None:
    assert overlap.hidden([one_rank(wait=1.0)]) == pytest.approx(3 / 4)
    assert overlap.hidden([one_rank(wait=0.0), one_rank(wait=3.0)]) == pytest.approx((3 + 3) / (3 + 6))
    other = [Span("C", 0, 0, 0.0, 1.0), Span("F", 0, 0, 1.0, 9.0)]
    assert overlap.hidden([other, [Span("F", 0, 0, 0.0, 1.0)]]) == 0.0  # another rank computed


def test_waiting_is_exposed_as_a_share_of_the_step() -> None:
    assert overlap.exposed([one_rank(wait=1.0)]) == pytest.approx(1 / 7)
    assert overlap.exposed([one_rank(wait=4.0), one_rank(wait=0.0)]) == pytest.approx(4 / 10 / 2)


def test_without_communication_nothing_is_said_of_it() -> None:
    assert overlap.judge([[[Span("F", 0, 0, 0.0, 1.0)]]], 2, {}, {}) == []


def test_figures_are_medians_and_there_is_no_bubble_where_none_is_promised() -> None:
    found = judged([[one_rank(0.0)], [one_rank(1.0)], [one_rank(9.0)]])
    assert found.keys() == {"hidden", "exposed", "flights"}
    assert found["hidden"].value == pytest.approx(3 / 4)
    assert found["exposed"].value == pytest.approx(1 / 7)
    assert {measurement.verdict for measurement in found.values()} == {"pass"}
    assert found["hidden"].detail["measured"] == overlap.plain([one_rank(1.0)])


def test_a_promised_bubble_is_judged_beside_it_from_the_actions_alone() -> None:
    laws = LAWS | {"bubble": Law("timeline", "bubble", "", 0.1, "a paper")}
    actions = [s for s in one_rank() if s.kind in "FB"]
    alone = timeline.judge([[actions]], 2, {"bubble": 1.0}, {"bubble": laws["bubble"]})
    both = timeline.judge([[one_rank()]], 2, {"bubble": 1.0, "flights": 1.0}, laws)
    assert [measurement.quantity for measurement in both] == ["hidden", "exposed", "flights", "bubble", "in_flight"]
    assert both[3:] == alone


@pytest.mark.parametrize(("cores", "disturbed"), [(0, False), (2, True)])
def test_where_cores_are_short_the_times_decide_nothing_but_the_count_does(cores: int, disturbed: bool) -> None:
    found = judged([[one_rank()]], cores, disturbed=disturbed)
    assert [found[name].verdict for name in ("hidden", "exposed", "flights")] == ["inconclusive"] * 2 + ["pass"]


def test_another_number_of_flights_fails_in_any_round_and_on_any_rank() -> None:
    found = judged([[one_rank(), one_rank()], [one_rank(), one_rank(flights=2)]])["flights"]
    assert (found.verdict, found.value) == ("fail", 2)
    assert found.reason.startswith("1, 2 flights per rank and step, promised 1")
