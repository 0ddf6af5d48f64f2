"""Schedules whose backward passes are whole: GPipe, 1F1B and its interleaved form, which flush the pipeline at the end
of a step, and PipeDream's two, which are 1F1B without a flush.

Drawn below: rows are ranks, columns unit times; digits are forward passes of that micro-batch, letters its backward
pass (a, b … for micro-batch 0, 1 …), dots idle time.

    p ranks   m micro-batches   v stages a rank   r this rank
"""

from impls.parallelism.pipeline_parallel.plan import Action, Plan, one_by_one


def gpipe(p: int, m: int) -> Plan:
    """All forward passes, then all backward passes (Huang et al. 2019, figure 2c).

    p = 3, m = 3, F = B = 1        012....cba
                                   .012..cba.
                                   ..012cba..
    """
    ranks = [[Action("F", r, i) for i in range(m)] + [Action("B", r, i) for i in reversed(range(m))] for r in range(p)]
    return one_by_one(ranks, tuple(range(p)))


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
    return one_by_one(ranks, tuple(range(p)))


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
    return one_by_one(ranks, tuple(s % p for s in range(p * v)))


def looped_bfs(p: int, m: int, v: int) -> Plan:
    """GPipe on v chunks a rank, each chunk's micro-batches together (Lamy-Poirier 2023, "Breadth-First Pipeline
    Parallelism", §4.1)."""
    ranks = []
    for r in range(p):
        forward = [Action("F", chunk * p + r, i) for chunk in range(v) for i in range(m)]
        ranks.append(forward + [a._replace(kind="B") for a in reversed(forward)])
    return one_by_one(ranks, tuple(s % p for s in range(p * v)))


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


def _updated(plan: Plan, every: int) -> Plan:
    """The plan with an update after every so many micro-batches' backward passes."""
    ranks = []
    for actions in plan.actions:
        order = []
        for action in actions:
            order.append(action)
            if action.kind == "B" and (action.micro + 1) % every == 0:
                order.append(action._replace(kind="U"))
        ranks.append(order)
    return one_by_one(ranks, plan.rank_of)
