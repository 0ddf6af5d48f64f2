"""Bubbles, micro-batches in flight, and the replayed time of the same actions with one core per rank."""

import itertools
import random
from statistics import median

import pytest

from harness.judge import timeline
from harness.spec import Law, Measurement, Span
from impls.parallelism.pipeline_parallel.schedules import one_f_one_b as one_f_one_b_plan

LAWS = {name: Law("timeline", name, "", 0.1, "a paper") for name in ("bubble", "in_flight")}


def one_f_one_b(stretch: float = 1.0, wait: float = 0.0) -> list[list[Span]]:
    """Two ranks, three micro-batches, F 1 s and B 2 s; rank 1's actions take ``stretch`` times as long, and each rank
    pauses ``wait`` s before every action but its first."""
    order = [["F0", "F1", "B0", "F2", "B1", "B2"], ["F0", "B0", "F1", "B1", "F2", "B2"]]
    ranks = [[Span(a[0], rank, int(a[1]), i, i + 1) for i, a in enumerate(row)] for rank, row in enumerate(order)]
    seconds = {(k, r, r): (1.0 if k == "F" else 2.0) * (stretch if r else 1.0) for k in "FB" for r in (0, 1)}
    played = timeline.replay(ranks, lambda rank, s: seconds[s.kind, rank, s.stage])
    return [[s._replace(start=s.start + wait * i, end=s.end + wait * i) for i, s in enumerate(row)] for row in played]


def test_the_bubble_of_1f1b_is_p_minus_1_of_m_plus_p_minus_1() -> None:
    assert timeline.bubble(one_f_one_b()) == pytest.approx(1 / 4)


def test_waiting_and_uneven_stages_enlarge_the_bubble() -> None:
    assert timeline.bubble(one_f_one_b(wait=0.5)) == pytest.approx(1 - 9 / 14.5)
    assert timeline.bubble(one_f_one_b(stretch=1.5)) > 0.3


def test_a_replay_keeps_each_ranks_order_and_every_dependency() -> None:
    ranks = one_f_one_b(stretch=2.0)
    ends = {(s.kind, s.stage, s.micro): s.end for spans in ranks for s in spans}
    for spans in ranks:
        assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
        for s in spans:
            before = ("F", s.stage - 1, s.micro) if s.kind == "F" else ("B", s.stage + 1, s.micro)
            assert s.start >= ends.get(before, 0.0)
            assert s.kind == "F" or s.start >= ends["F", s.stage, s.micro]


def test_actions_that_wait_for_one_another_are_an_error() -> None:
    ranks = [[Span("B", 0, 0, 0, 1), Span("F", 0, 0, 1, 2)]]
    with pytest.raises(ValueError, match="wait for one another"):
        timeline.replay(ranks, lambda rank, s: 1.0)


@pytest.mark.parametrize(
    ("kinds", "most"), [("FFFBBB", 3), ("FBFBFB", 1), ("FFBBFB", 2), ("FFBWBWFBW", 2), ("FFBBWWFBW", 2)]
)
def test_a_micro_batch_is_in_flight_until_its_gradients_are_done(kinds: str, most: float) -> None:
    spans = [Span(kind, 0, 0, at, at + 1) for at, kind in enumerate(kinds)]
    assert timeline.in_flight(spans) == most


def test_a_schedule_may_split_some_backward_passes_only() -> None:
    order = [("F", 0), ("B", 0), ("F", 1), ("B", 1), ("W", 1), ("F", 2), ("B", 2)]
    assert timeline.in_flight([Span(kind, 0, micro, at, at + 1) for at, (kind, micro) in enumerate(order)]) == 1


def test_one_of_two_stages_counts_half() -> None:
    spans = [Span(kind, stage, 0, at, at + 1) for at, (kind, stage) in enumerate([("F", 0), ("F", 1), ("B", 1)])]
    assert timeline.in_flight(spans) == 1.0


def test_a_disturbed_action_does_not_count() -> None:
    rounds = [one_f_one_b() for _ in range(4)]
    slow = [[s._replace(end=s.end + 10) for s in spans] for spans in one_f_one_b()]
    assert timeline.times([*rounds, slow]) == pytest.approx(timeline.times(rounds))


def test_the_typical_round_is_free_of_what_differs_from_round_to_round() -> None:
    """Each action is slow in one of eight rounds, and so is each wait; rank 1 is slower and later in all of them."""
    usual = one_f_one_b(stretch=1.2, wait=0.1)
    rounds = []
    for odd in range(8):
        slow = {("F", 0, 0): 2.0} if odd == 3 else {("B", 1, 1): 3.0} if odd == 5 else {}
        late = {("F", 1, 2): 1.5} if odd == 6 else {}
        rounds.append(
            timeline.replay(
                usual,
                lambda rank, s, slow=slow: slow.get((s.kind, s.stage, s.micro), (1 + (s.kind == "B")) * (1 + rank / 5)),
                lambda rank, s, late=late: late.get((s.kind, s.stage, s.micro), 0.1 * rank),
            )
        )
    assert timeline.Typical(rounds).round() == rounds[0]
    undelayed = timeline.bubble(timeline.Typical(rounds).round(delayed=False))
    assert undelayed == pytest.approx(timeline.bubble(one_f_one_b(stretch=1.2)))


def bubble(cores: int = 2, wait: float = 0.0, disturbed: bool = False) -> str:
    found = timeline.judge([one_f_one_b(wait=wait)] * 3, cores, {"bubble": 0.25, "in_flight": 2.0}, LAWS, disturbed)
    assert {measurement.quantity for measurement in found} == {"bubble", "in_flight"}
    assert found[1].verdict == "pass"
    assert found[0].detail["replayed"] is (cores < 2)
    assert ("replayed" in found[0].reason) is (cores < 2)
    assert ("median" in found[0].reason) is (cores >= 2)
    return found[0].verdict


def test_a_bubble_passes_within_the_laws_tolerance() -> None:
    assert bubble() == "pass"
    assert bubble(wait=0.02) == "pass"
    assert bubble(wait=0.5) == "fail"


def test_a_bubble_that_other_rounds_would_have_let_pass_decides_nothing() -> None:
    rounds = [one_f_one_b(wait=wait) for wait in (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)]
    bubble, _ = timeline.judge(rounds, 2, {"bubble": 0.26}, LAWS)
    assert bubble.detail["low"] < 0.26 * 1.1 < bubble.detail["high"]
    assert bubble.verdict == "inconclusive"


def test_a_machine_that_slows_actions_by_chance_fails_no_schedule() -> None:
    """Eight micro-batches of 1F1B; in some rounds each action takes up to 1.5 times as long. The bubble is 1/9."""
    plan = one_f_one_b_plan(2, 8)
    spans = [[Span(*action, at, at + 1) for at, action in enumerate(actions)] for actions in plan.actions]
    verdicts = []
    for seed in range(20):
        chance = random.Random(seed)

        def seconds(rank: int, s: Span, chance: random.Random = chance) -> float:
            return (1.0 + (s.kind == "B")) * (1 + 0.5 * chance.random() ** 4)

        rounds = [timeline.replay(spans, seconds) for _ in range(10)]
        assert median(timeline.bubble(ranks) for ranks in rounds) > 1 / 9 * 1.1
        verdicts.append(timeline.judge(rounds, 2, {"bubble": 1 / 9}, LAWS)[0].verdict)
    assert verdicts.count("pass") > 15
    assert "fail" not in verdicts


def judged(cores: int, alike: bool = False, **about: float) -> Measurement:
    return timeline.judge([one_f_one_b(**about)] * 3, cores, {"bubble": 0.25}, LAWS, alike=alike)[0]


def test_a_slower_core_is_not_the_schedules_fault_and_is_reported() -> None:
    """The schedule's own bubble, from its order and its waits, whatever the cores are like."""
    found = judged(2, alike=True, stretch=1.5)
    assert found.value == pytest.approx(1 / 4)
    assert found.verdict == "pass"
    as_it_was = timeline.bubble(one_f_one_b(stretch=1.5))
    assert f"{as_it_was:.3g} with their real lengths" in found.reason
    assert found.detail["drawn"] == pytest.approx(as_it_was)
    assert found.detail["alike"]
    assert judged(2, alike=True, stretch=1.5, wait=0.5).verdict == "fail"


@pytest.mark.parametrize("cores", [1, 2])
def test_stages_that_are_slower_fail_where_cores_do_not_differ(cores: int) -> None:
    assert judged(cores, stretch=1.5).verdict == "fail"
    assert judged(cores).verdict == "pass"


def test_actions_of_ranks_that_share_cores_count_as_equal_and_their_real_bubble_is_reported() -> None:
    found = judged(1, alike=True, stretch=1.5, wait=0.5)
    assert found.verdict == "pass"
    assert f"{timeline.bubble(one_f_one_b(stretch=1.5)):.3g} with their real lengths" in found.reason
    assert found.detail["replayed"]


def test_a_bubble_that_only_unequal_actions_enlarge_is_watched_again() -> None:
    def look(**about: float) -> bool:
        return timeline.unequal([judged(2, **about)])

    assert look(stretch=1.5)
    assert not look()
    assert not look(wait=0.5)  # every world's messages would be equally late
    assert not look(stretch=1.5, wait=0.5)


def test_ranks_that_share_cores_are_judged_by_a_replay() -> None:
    assert bubble(cores=1, wait=0.5) == "pass"  # the machine causes the wait, not the schedule


def test_where_others_took_the_cores_a_large_bubble_decides_nothing() -> None:
    assert bubble(wait=0.5, disturbed=True) == "inconclusive"
    assert bubble(disturbed=True) == "pass"


def test_more_micro_batches_in_flight_than_promised_fail_whoever_disturbed() -> None:
    found = timeline.judge([one_f_one_b()], 2, {"bubble": 0.25, "in_flight": 1.0}, LAWS, disturbed=True)
    assert found[1].verdict == "fail"
