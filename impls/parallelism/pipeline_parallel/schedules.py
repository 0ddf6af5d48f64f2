"""Pipeline schedules as data: for every rank the list of its actions, in order. An executor runs any of them.

p ranks, m micro-batches, v stages a rank. Drawn below: rows are ranks, columns unit times; digits are forward passes of
that micro-batch, letters its backward pass (a, b … for micro-batch 0, 1 …), in upper case its weights' gradients where
they come apart from its inputs', dots idle time.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Action(NamedTuple):
    """``kind``: F forward, B backward, W the weights' part of it. Where a schedule has W, B is the inputs' part. Of an
    asynchronous schedule U, which updates the stage's weights with what backward passes left since the last one, up to
    this micro-batch's. ``stage`` counts along the model; a second copy of it (DualPipe) counts on from the first."""

    kind: str
    stage: int
    micro: int


Schedule = tuple[tuple[Action, ...], ...]


class Plan(NamedTuple):
    """``rank_of[stage]`` holds a stage; a copy of the model has ``stages`` of them, one behind the other. Of an
    asynchronous schedule ``versions[stage][micro]`` says how many of the step's updates that stage's weights have seen
    with which this micro-batch is computed, forward and backward."""

    actions: Schedule
    rank_of: tuple[int, ...]
    stages: int
    versions: tuple[tuple[int, ...], ...] = ()


def gpipe(p: int, m: int) -> Plan:
    """All forward passes, then all backward passes (Huang et al. 2019, figure 2c).

    p = 3, m = 3, F = B = 1        012....cba
                                   .012..cba.
                                   ..012cba..
    """
    ranks = [[Action("F", r, i) for i in range(m)] + [Action("B", r, i) for i in reversed(range(m))] for r in range(p)]
    return _plan(ranks, tuple(range(p)))


def one_f_one_b(p: int, m: int) -> Plan:
    """Backward passes begin as soon as they can, and alternate with forward passes: at most p micro-batches are in
    flight (Narayanan et al. 2019, §3.2, figure 4; with a flush: Narayanan et al. 2021, figure 3).

    p = 3, m = 4, F = B = 1        012..a3b.c.d
                                   .01.a2b3c.d.
                                   ..0a1b2c3d..
    """
    ranks = []
    for r in range(p):
        warm = min(p - 1 - r, m)
        forward, backward = ([Action(kind, r, i) for i in range(m)] for kind in "FB")
        pairs = [action for pair in zip(forward[warm:], backward, strict=False) for action in pair]
        ranks.append(forward[:warm] + pairs + backward[m - warm :])
    return _plan(ranks, tuple(range(p)))


def pipedream(p: int, m: int) -> Plan:
    """1F1B without a flush: every micro-batch is a mini-batch, and a stage updates its weights after each backward
    pass. A forward pass takes the newest weights, its backward pass the same ones, which are stashed until then: on
    stage s the gradient is p − 1 − s updates old (Narayanan et al. 2019, §3.3, "weight stashing"; without their
    "vertical sync", which would give a micro-batch the first stage's version on every stage).

    p = 3, m = 6        micro-batches       012345
                        versions, stage 0   000123
                        versions, stage 1   001234
                        versions, stage 2   012345
    """
    plan = _updated(one_f_one_b(p, m), 1)
    versions = []
    for r, actions in enumerate(plan.actions):
        kinds = [action.kind for action in actions]
        versions.append(tuple(kinds[: actions.index(Action("F", r, i))].count("U") for i in range(m)))
    return plan._replace(versions=tuple(versions))


def pipedream_2bw(p: int, m: int) -> Plan:
    """1F1B without a flush, with an update after every p micro-batches, a mini-batch; all stages compute one with the
    weights before the last update, W(t + 1) = W(t) − lr ∇f(W(t − 1)), so that two versions do (Narayanan et al. 2021,
    "Memory-Efficient Pipeline-Parallel DNN Training", §3.1, "2BW"). Raises ValueError unless p divides m.

    p = 3, m = 9        micro-batches       012345678
                        versions, stage 0   000000111
                        versions, stage 1   000000111
                        versions, stage 2   000000111
    """
    if m % p:
        raise ValueError(f"2BW makes an update of p micro-batches: {p} does not divide {m}")
    return _updated(one_f_one_b(p, m), p)._replace(versions=(tuple(max(0, i // p - 1) for i in range(m)),) * p)


def interleaved(p: int, m: int, v: int) -> Plan:
    """1F1B on v chunks a rank: stage s is on rank s mod p, so that a micro-batch goes round v times and the bubble
    shrinks by v (Narayanan et al. 2021, §2.2, figure 4). Raises ValueError unless p divides m.

    p = 2, m = 4, v = 2, F = 1, B = 2        01012.aa3bb2aa3bb.cc.ddccdd
                                             .010aa1bb2aa3bb2cc3ddccdd..
    """
    if m % p:
        raise ValueError(f"the interleaved schedule takes a multiple of p micro-batches: {p} does not divide {m}")
    ranks = []
    for r in range(p):
        order = [(chunk, group + i) for group in range(0, m, p) for chunk in range(v) for i in range(p)]
        forward = [Action("F", chunk * p + r, i) for chunk, i in order]
        backward = [Action("B", (v - 1 - chunk) * p + r, i) for chunk, i in order]
        warm = min(2 * (p - 1 - r) + (v - 1) * p, m * v)
        pairs = [action for pair in zip(forward[warm:], backward, strict=False) for action in pair]
        ranks.append(forward[:warm] + pairs + backward[m * v - warm :])
    return _plan(ranks, tuple(s % p for s in range(p * v)))


def looped_bfs(p: int, m: int, v: int) -> Plan:
    """GPipe on v chunks a rank, each chunk's micro-batches together (Lamy-Poirier 2023, "Breadth-First Pipeline
    Parallelism", §4.1)."""
    ranks = []
    for r in range(p):
        forward = [Action("F", chunk * p + r, i) for chunk in range(v) for i in range(m)]
        ranks.append(forward + [a._replace(kind="B") for a in reversed(forward)])
    return _plan(ranks, tuple(s % p for s in range(p * v)))


def interleaved_zb(p: int, m: int, v: int) -> Plan:
    """The interleaved schedule with weights' gradients apart, r actions behind the inputs' on rank r (Qi et al. 2023,
    §6, "ZB1P" of several chunks)."""
    plan = interleaved(p, m, v)
    ranks = []
    for r, actions in enumerate(plan.actions):
        backward = [a for a in actions if a.kind == "B"]
        order: list[Action] = []
        done = 0
        for action in actions:
            order.append(action)
            done += action.kind == "B"
            if action.kind == "B" and done > r:
                order.append(backward[done - 1 - r]._replace(kind="W"))
        ranks.append(order + [a._replace(kind="W") for a in backward[len(backward) - r :]])
    return plan._replace(actions=tuple(tuple(actions) for actions in ranks))


def zb_h1(p: int, m: int) -> Plan:
    """1F1B in which the weights' gradients, on which nothing waits, come r micro-batches after the inputs' on rank r,
    and so fill what would be idle at the end; p micro-batches in flight, as many as 1F1B has on rank 0 (Qi et al. 2023,
    §2.2, figure 2).

    p = 3, m = 4, F = B = W = 1        012..aA3bBcCdD
                                       .01.a2bA3cBdCD
                                       ..0a1b2cA3dBCD
    """
    ranks = []
    for r in range(p):
        warm = min(p - 1 - r, m)
        order = [Action("F", r, i) for i in range(warm)]
        for i in range(m + r):
            order += [Action("F", r, i + warm)] if i + warm < m else []
            order += [Action("B", r, i)] if i < m else []
            order += [Action("W", r, i - r)] if 0 <= i - r < m else []
        ranks.append(order)
    return _plan(ranks, tuple(range(p)))


def zb_v(p: int, m: int) -> Plan:
    """Two stages a rank in the shape of a V, the first and the last on rank 0; at most 2p halves of micro-batches in
    flight, which is the memory of 1F1B (Qi et al. 2024, "Pipeline Parallelism with Controllable Memory", §4.1).

    p = 2, m = 4, F = B = W = 1        0120aA1baBb3A2cCBcC3dD.dD
                                       .0011aaAbb2B2A3ccC3BCddDD
    """
    down = list(range(p))
    return _greedy(p, [list(range(m))], tuple(down + down[::-1]), 2 * p, limit=2 * p)


def dual_pipe(p: int, m: int) -> Plan:
    """Two copies of the model, one from each end; half of the micro-batches enter at each (DeepSeek-AI 2024, §3.2.1,
    figure 5). Raises ValueError unless p and m are even.

    p = 2, m = 8, F = B = W = 1        04ea1E5fbF2A6gcG3B7hdHCD
                                       40ae5A1bfB6E2cgC7F3dhDGH
    """
    if p % 2 or m % 2:
        raise ValueError(f"DualPipe takes an even number of ranks and of micro-batches, not {p} and {m}")
    down, half = list(range(p)), m // 2
    return _greedy(p, [list(range(half)), list(range(half, m))], tuple(down + down[::-1]), p, limit=p + 1)


def dual_pipe_v(p: int, m: int) -> Plan:
    """DualPipe cut in half: one copy of the model in the shape of a V, whose two stages on a rank play the two ends
    (DeepSeek-AI 2025, DualPipe, "DualPipeV"); one half of a micro-batch more in flight than ZB-V."""
    down = list(range(p))
    return _greedy(p, [list(range(m))], tuple(down + down[::-1]), 2 * p, limit=2 * p + 1)


SCHEDULES: dict[str, Callable[..., Plan]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "looped_bfs": looped_bfs,
    "interleaved_zb": interleaved_zb,
    "zb_h1": zb_h1,
    "zb_v": zb_v,
    "dual_pipe": dual_pipe,
    "dual_pipe_v": dual_pipe_v,
    "pipedream": pipedream,
    "pipedream_2bw": pipedream_2bw,
}


LOOPED = ("interleaved", "looped_bfs", "interleaved_zb")  # take the number of stages a rank
ASYNCHRONOUS = ("pipedream", "pipedream_2bw")  # update inside the step


def _plan(ranks: Sequence[Sequence[Action]], rank_of: tuple[int, ...]) -> Plan:
    return Plan(tuple(tuple(actions) for actions in ranks), rank_of, len(rank_of))


def _updated(plan: Plan, every: int) -> Plan:
    """The plan with an update after every so many micro-batches' backward passes."""
    ranks = []
    for actions in plan.actions:
        ends = [action.kind == "B" and (action.micro + 1) % every == 0 for action in actions]
        ranks.append(
            [a for b, end in zip(actions, ends, strict=True) for a in ([b, b._replace(kind="U")] if end else [b])]
        )
    return plan._replace(actions=tuple(tuple(actions) for actions in ranks))


def before(action: Action, plan: Plan) -> list[Action]:
    """The actions that must be done before this one can begin."""
    kind, stage, micro = action
    first, last = stage % plan.stages == 0, (stage + 1) % plan.stages == 0
    if kind == "F":
        return [] if first else [Action("F", stage - 1, micro)]
    if kind in "WU":
        return [Action("B", stage, micro)]
    own = Action("F", stage, micro)
    return [own] if last else [own, Action("B", stage + 1, micro)]


def consumer(action: Action, plan: Plan) -> Action | None:
    """The action on the next stage, or of a backward pass the previous one, that takes this one's result."""
    kind, stage, micro = action
    if kind == "F" and (stage + 1) % plan.stages:
        return Action("F", stage + 1, micro)
    if kind == "B" and stage % plan.stages:
        return Action("B", stage - 1, micro)
    return None


def _greedy(p: int, copies: list[list[int]], rank_of: tuple[int, ...], stages: int, limit: int) -> Plan:
    """In unit times, each rank does the first it can of: a backward pass (it frees others), a forward pass (while no
    more than ``limit`` of them are without their weights' gradients), weights' gradients."""
    plan = Plan(tuple(() for _ in range(p)), rank_of, stages)
    mine: list[list[Action]] = [[] for _ in range(p)]
    todo: list[set[Action]] = [set() for _ in range(p)]
    for copy, micros in enumerate(copies):
        for stage in range(copy * stages, (copy + 1) * stages):
            todo[rank_of[stage]] |= {Action(kind, stage, i) for kind in "FBW" for i in micros}
    done: set[Action] = set()

    def urgency(rank: int, action: Action) -> tuple[int, int, int]:
        """Backward first; of several the deepest stage's, which is nearest to its own backward pass."""
        return "BFW".index(action.kind), -(action.stage % stages), action.micro

    while any(todo):
        finished = []
        for rank in range(p):
            open_ = sum({"F": 1, "W": -1}.get(a.kind, 0) for a in mine[rank])
            ready = [
                a
                for a in todo[rank]
                if all(b in done for b in before(a, plan)) and not (a.kind == "F" and open_ >= limit)
            ]
            if ready:
                chosen = min(ready, key=lambda a: urgency(rank, a))
                todo[rank].remove(chosen)
                mine[rank].append(chosen)
                finished.append(chosen)
        if not finished:
            raise ValueError(f"no schedule of {p} ranks within {limit} stages in flight")
        done |= set(finished)
    return plan._replace(actions=tuple(tuple(actions) for actions in mine))
