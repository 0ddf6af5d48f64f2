"""Pipeline schedules: every action once, in a valid order, with the bubble that papers promise."""

import inspect
from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.judge import timeline
from harness.spec import Span, Topology, Workload
from impls.parallelism.pipeline_parallel import laws
from impls.parallelism.pipeline_parallel.plan import Action, Plan, Slot, before, consumer
from impls.parallelism.pipeline_parallel.schedules import LOOPED, SCHEDULES, dual_pipe, dual_pipe_v, zb_v

UNIT = {"F": 1.0, "B": 1.0, "W": 1.0}
PICTURES = {
    "gpipe": ((3, 3), UNIT),
    "1f1b": ((3, 4), UNIT),
    "interleaved": ((2, 4, 2), UNIT | {"B": 2.0}),
    "zb_h1": ((3, 4), UNIT),
    "zb_v": ((2, 4), UNIT),
    "dual_pipe": ((4, 8), UNIT),
    "dual_pipe_v": ((2, 4), UNIT),
}


def played(plan: Plan, times: dict[str, float]) -> list[list[Span]]:
    """Starts each slot as soon as its rank is free and its inputs have left other slots. An update takes no time."""
    done: dict[Action, float] = {}
    free, spans = [0.0] * len(plan.slots), [list[Span]() for _ in plan.slots]
    todo = [deque(slots) for slots in plan.slots]
    while any(todo):
        ready = [rank for rank, slots in enumerate(todo) if slots and needed(slots[0], plan) <= done.keys()]
        assert ready, "these slots wait for one another"
        for rank in ready:
            slot = todo[rank].popleft()
            at = max([free[rank], *(done[action] for action in needed(slot, plan))])
            for action in slot:
                end = at + times.get(action.kind, 0.0)
                spans[rank] += [Span(*action, at, end)] if action.kind != "U" else []
                at = end
            free[rank] = at
            done |= dict.fromkeys(slot, at)
    return spans


def needed(slot: Slot, plan: Plan) -> set[Action]:
    return {action for each in slot for action in before(each, plan)} - {*slot}


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
    """Numbers of ranks, micro-batches and, if the schedule has them, stages per rank."""
    ranks, rounds = st.integers(1, 5), st.integers(1, 4)
    if name in LOOPED:
        return st.builds(lambda p, k, v: (p, p * k, v), ranks, rounds, st.integers(1, 3))
    if name == "pipedream_2bw":
        return st.builds(lambda p, k: (p, p * k), ranks, rounds)
    if name == "dual_pipe":
        return st.builds(lambda h, k: (2 * h, 4 * h + 2 * k), st.integers(1, 3), st.integers(0, 6))
    if name == "dual_pipe_v":
        return st.builds(lambda p, k: (p, 2 * p + k), ranks, st.integers(0, 6))
    return st.tuples(ranks, st.integers(1, 12))


@pytest.mark.parametrize("name", SCHEDULES)
@settings(max_examples=25)
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
    played(plan, UNIT)  # ends
    for actions in plan.actions:
        for at, a in enumerate(actions):
            mine = {b for b in before(a, plan) if b in actions}
            assert mine <= {*actions[:at]}
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


def test_a_promise_for_equal_times_does_not_cover_others() -> None:
    work, times = WORK.with_(model=type(WORK.model)(num_hidden_layers=8)), UNIT | {"B": 1.2}
    for name in ("zb_v", "dual_pipe_v", "dual_pipe"):
        assert laws.bubble(work, Topology(pp=4), schedule=name, times=UNIT) is not None
        assert laws.bubble(work, Topology(pp=4), schedule=name, times=times) is None


def idle(plan: Plan) -> list[float]:
    """Each rank's idle time until the last one is done; with F = B = W = 1."""
    rows = played(plan, UNIT)
    end = max(s.end for row in rows for s in row)
    return [end - sum(s.end - s.start for s in row) for row in rows]


@pytest.mark.parametrize(("pp", "micro_batches"), [(2, 3), (2, 8), (4, 7), (4, 8), (8, 16)])
def test_zb_v_idles_while_the_first_micro_batch_goes_down_and_the_last_comes_up(pp: int, micro_batches: int) -> None:
    assert idle(zb_v(pp, micro_batches)) == [pp - 1] * pp
    for row in played(zb_v(pp, micro_batches), UNIT):
        assert row[-1].end - row[0].start == 6 * micro_batches  # never between its first action and its last


@pytest.mark.parametrize(("pp", "micro_batches"), [(2, 4), (2, 8), (4, 8), (6, 14), (8, 16), (8, 20)])
def test_dual_pipe_idles_as_long_as_published(pp: int, micro_batches: int) -> None:
    """(PP/2 − 1)(F&B + B − 3W): for whole backward passes, (PP/2 − 1)(3 + 2 − 3)."""
    assert idle(dual_pipe(pp, micro_batches)) == [(pp // 2 - 1) * 2] * pp
    assert idle(dual_pipe_v(pp // 2, micro_batches)) == [(pp // 2 - 1) * 2] * (pp // 2)


def test_dual_pipe_of_eight_ranks_is_the_published_figure() -> None:
    """Figure 5 of the report: 20 micro-batches; the numbers of slots of each kind on the upper half of the ranks, which
    the lower half mirrors."""
    counts = [Counter("".join(action.kind for action in slot) for slot in slots) for slots in dual_pipe(8, 20).slots]
    assert [dict(count) for count in counts[:4]] == [
        {"F": 11, "FBW": 9, "B": 7, "W": 7, "BW": 4},
        {"F": 10, "FBW": 10, "B": 6, "W": 6, "BW": 4},
        {"F": 9, "FBW": 11, "B": 5, "W": 5, "BW": 4},
        {"F": 9, "FBW": 11, "B": 4, "W": 4, "BW": 5},
    ]
    assert counts[4:] == counts[3::-1]


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
        ("dual_pipe", (3, 8), "an even number of ranks and of micro-batches, at least 2p, not 3 and 8"),
        ("dual_pipe", (2, 7), "not 2 and 7"),
        ("dual_pipe", (4, 6), "not 4 and 6"),
        ("dual_pipe_v", (3, 5), "at least 2p micro-batches: 5 are fewer than 6"),
        ("pipedream_2bw", (4, 6), "2BW makes an update of p micro-batches: 4 does not divide 6"),
    ],
)
def test_a_schedule_that_cannot_be_made_says_why(name: str, arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SCHEDULES[name](*arguments)
