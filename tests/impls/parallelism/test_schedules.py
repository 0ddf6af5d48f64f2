"""Pipeline schedules: every action once, in an order that can be run, with the bubble that papers promise."""

import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.judge import timeline
from harness.spec import Span, Topology, Workload
from impls.parallelism.pipeline_parallel import laws
from impls.parallelism.pipeline_parallel.schedules import LOOPED, SCHEDULES, Plan, before, consumer

UNIT = {"F": 1.0, "B": 1.0, "W": 1.0}
PICTURES = {
    "gpipe": ((3, 3), UNIT),
    "1f1b": ((3, 4), UNIT),
    "interleaved": ((2, 4, 2), UNIT | {"B": 2.0}),
    "zb_h1": ((3, 4), UNIT),
    "zb_v": ((2, 4), UNIT),
    "dual_pipe": ((2, 8), UNIT),
}


def played(plan: Plan, times: dict[str, float]) -> list[list[Span]]:
    """Each action as soon as its rank and its predecessors are free; an update takes no time."""
    spans = [[Span(*a, at, at + 1) for at, a in enumerate(actions) if a.kind != "U"] for actions in plan.actions]
    return timeline.replay(spans, lambda rank, s: times[s.kind])


def draw(plan: Plan, times: dict[str, float]) -> list[str]:
    spans = played(plan, times)
    length = round(max(s.end for row in spans for s in row))
    rows = []
    for row in spans:
        line = ["."] * length
        for s in row:
            line[round(s.start) : round(s.end)] = chr(ord({"F": "0", "B": "a", "W": "A"}[s.kind]) + s.micro) * round(
                s.end - s.start
            )
        rows.append("".join(line))
    return rows


@pytest.mark.parametrize("name", PICTURES)
def test_a_schedule_is_the_picture_in_its_docstring(name: str) -> None:
    arguments, times = PICTURES[name]
    picture = draw(SCHEDULES[name](*arguments), times)
    lines = (inspect.getdoc(SCHEDULES[name]) or "").splitlines()
    assert [line.split()[-1] for line in lines[-len(picture) :]] == picture


def sizes(name: str) -> st.SearchStrategy[tuple[int, ...]]:
    """Of ranks, micro-batches and, where the schedule takes them, stages a rank."""
    ranks, rounds = st.integers(1, 5), st.integers(1, 4)
    if name in LOOPED:
        return st.builds(lambda p, k, v: (p, p * k, v), ranks, rounds, st.integers(1, 3))
    if name == "pipedream_2bw":
        return st.builds(lambda p, k: (p, p * k), ranks, rounds)
    if name == "dual_pipe":
        return st.builds(lambda p, k: (2 * p, 2 * k), st.integers(1, 3), st.integers(1, 8))
    return st.tuples(ranks, st.integers(1, 12))


@pytest.mark.parametrize("name", SCHEDULES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_schedule_does_each_action_once_on_its_own_rank_and_can_be_run(name: str, data: st.DataObject) -> None:
    arguments = data.draw(sizes(name))
    plan = SCHEDULES[name](*arguments)
    p, m = arguments[:2]
    done = [(a.stage, a.micro, a.kind) for actions in plan.actions for a in actions if a.kind != "U"]
    assert len(done) == len(set(done))
    kinds = {kind for *_, kind in done}
    assert kinds in ({"F", "B"}, {"F", "B", "W"})
    assert len(done) == len(kinds) * m * plan.stages
    for rank, actions in enumerate(plan.actions):
        assert {plan.rank_of[a.stage] for a in actions} <= {rank}
    assert {plan.rank_of[stage] for stage in range(len(plan.rank_of))} == set(range(p))
    ends = {(s.kind, s.stage, s.micro): s.end for row in played(plan, UNIT) for s in row}  # raises where it cannot
    for actions in plan.actions:
        for a in (a for a in actions if a.kind != "U"):
            assert all(ends[b] < ends[a] for b in before(a, plan))
            assert (needs := consumer(a, plan)) is None or a in before(needs, plan)


WORK = Workload(micro_batches=8, batch_size=16)


@pytest.mark.parametrize("pp", [2, 4])
@pytest.mark.parametrize(
    "name", ["gpipe", "1f1b", "interleaved", "looped_bfs", "zb_h1", "interleaved_zb", "pipedream", "pipedream_2bw"]
)
@pytest.mark.parametrize("times", [UNIT, {"F": 1.0, "B": 1.5, "W": 0.75}])
def test_a_schedule_idles_as_long_as_its_law_says(name: str, pp: int, times: dict[str, float]) -> None:
    work = WORK.with_(model=type(WORK.model)(num_hidden_layers=8))
    plan = SCHEDULES[name](pp, 8, *((2,) if name in LOOPED else ()))
    found = timeline.bubble(played(plan, times))
    promised = laws.bubble(work, Topology(pp=pp), schedule=name, times=times)
    assert found == pytest.approx(promised)


def test_what_is_promised_for_equal_times_is_not_promised_for_others() -> None:
    work, times = WORK.with_(model=type(WORK.model)(num_hidden_layers=8)), UNIT | {"B": 1.2}
    for name in ("zb_v", "dual_pipe_v", "dual_pipe"):
        assert laws.bubble(work, Topology(pp=4), schedule=name, times=UNIT) is not None
        assert laws.bubble(work, Topology(pp=4), schedule=name, times=times) is None


@pytest.mark.parametrize(("pp", "most"), [(2, 1.05), (4, 1.4)])
@pytest.mark.parametrize("name", ["zb_v", "dual_pipe_v"])
def test_a_v_idles_little_longer_than_its_first_micro_batch_takes_to_arrive(name: str, pp: int, most: float) -> None:
    work = WORK.with_(model=type(WORK.model)(num_hidden_layers=8))
    promised = laws.bubble(work, Topology(pp=pp), schedule=name)
    assert promised is not None
    assert timeline.bubble(played(SCHEDULES[name](pp, 8), UNIT)) <= most * promised


@pytest.mark.parametrize("pp", [2, 4, 8])
def test_dual_pipe_idles_no_longer_than_published(pp: int) -> None:
    work = WORK.with_(micro_batches=20, batch_size=20, model=type(WORK.model)(num_hidden_layers=8))
    promised = laws.bubble(work, Topology(pp=pp), schedule="dual_pipe")
    assert promised is not None
    assert timeline.bubble(played(SCHEDULES["dual_pipe"](pp, 20), UNIT)) <= promised + 1e-9


@pytest.mark.parametrize("pp", [2, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_no_rank_keeps_more_micro_batches_than_the_law_says(name: str, pp: int) -> None:
    plan = SCHEDULES[name](pp, 8, *((2,) if name in LOOPED else ()))
    most = max(timeline.in_flight(row) for row in played(plan, UNIT))
    promised = laws.in_flight(WORK, Topology(pp=pp), schedule=name)
    assert most <= promised
    if name in ("gpipe", "1f1b", "looped_bfs", "zb_h1", "pipedream", "pipedream_2bw"):
        assert most == promised


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("interleaved", (4, 6, 2), "a multiple of p micro-batches: 4 does not divide 6"),
        ("dual_pipe", (3, 8), "an even number of ranks and of micro-batches, not 3 and 8"),
        ("dual_pipe", (2, 7), "not 2 and 7"),
        ("pipedream_2bw", (4, 6), "2BW makes an update of p micro-batches: 4 does not divide 6"),
    ],
)
def test_a_schedule_that_cannot_be_made_says_why(name: str, arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SCHEDULES[name](*arguments)
