"""Zero-bubble schedules (Qi et al. 2023, "Zero Bubble Pipeline Parallelism"): a backward pass comes in two parts, the
inputs' gradients B, for which the previous stage waits, and the weights' gradients W, for which nobody does. W fills
what would be idle.

Pictures as in schedules.py: rows are ranks, columns unit times; digits are F, lower-case letters B, upper-case letters
W, of micro-batch 0 or a, 1 or b, …; dots idle time.

    p ranks   m micro-batches   v stages a rank   r this rank
"""

from impls.parallelism.pipeline_parallel.basic import interleaved
from impls.parallelism.pipeline_parallel.plan import Action, Plan, numbered, one_by_one


def zb_h1(p: int, m: int) -> Plan:
    """1F1B in which W comes r micro-batches after B on rank r; p micro-batches in flight, as many as 1F1B has on rank 0
    (§2.2, figure 2).

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
    return one_by_one(ranks, tuple(range(p)))


def interleaved_zb(p: int, m: int, v: int) -> Plan:
    """The interleaved schedule in which W comes r actions after B on rank r (§6, "ZB1P" of several chunks)."""
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
    return one_by_one(ranks, plan.rank_of)


def zb_v(p: int, m: int) -> Plan:
    """Two stages a rank in the shape of a V: F0, B0, W0 are those of stage r on the way down, F1, B1, W1 those of stage
    2p − 1 − r on the way up. The first and the last stage are both on rank 0. At most 2p halves of a micro-batch are in
    flight, the memory of 1F1B, and with F = B = W no rank idles between its first action and its last (§6, the
    schedule drawn by hand; Qi et al. 2024, "Pipeline Parallelism with Controllable Memory", figure 4, "V-ZB").

    For other times the papers search a schedule; this one is the drawn one. It takes m ≥ 2p − 1 to be without bubbles;
    for fewer micro-batches it is that of 2p − 1 with the last ones left out.

    p = 2, m = 4, F = B = W = 1        0120aA1bB3aA2cCbB3dDcCdD.
                                       .0011aA2aA2bB3bB3cCcddCDD
    """
    drawn = max(2 * p - 1, m)
    ranks = []
    for r in range(p):
        slots = [
            *["F0"] * (2 * (p - r) - 1),  # 1. down only, until the first micro-batch is on its way up
            *["F1", "F0"] * r,  # 2. both ways
            *["F1", "B1", "W1"] * (p - r),  # 3. the first backward passes
            *["F0", "B0", "W0", "F1", "B1", "W1"] * (drawn - 2 * p + r + 1),  # 4. steady
            *["B0", "W0", "F1", "B1", "W1"] * (p - r - 1),  # 5. the last forward passes up
            *["B0", "B1"] * r,  # 6. backward passes, for which others wait, before weights
            *["B0", "W0"] * (p - r),
            *["W1"] * r,  # 7. the weights that are left
            *["W0"] * r,
        ]
        actions = numbered(slots, (r, 2 * p - 1 - r))
        ranks.append([action for (action,) in actions if action.micro < m])
    return one_by_one(ranks, (*range(p), *reversed(range(p))))
