"""DualPipe (DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", §3.2.1, figure 5) and DualPipeV, its half: a forward pass
of one micro-batch is computed together with a backward pass of another, F&B, so that what one sends to other ranks
inside a layer (experts' all-to-all) travels while the other computes. The phases are those that the authors published
with their code (DeepSeek-AI 2025, DualPipe).

Every rank has two stages, one on each of two ways; 0 is the way that enters nearer to it. In the authors' notation,
with h ranks from the way's entrance to the middle, r of them before this one:

    1.  F0            × 2(h − r − 1)        5.  B1, F1&B0    × h − r − 1
    2.  F0, F1        × r + 1               6.  B1, B0       × r + 1, the second half of the B without their W
    3.  B1, W1, F1    × h − r − 1           7.  W, B0        × h − r − 1
    4.  F0&B1, F1&B0  × n − 2h + r + 1      8.  W            × r + 1

n micro-batches enter on way 0. Only phases 3 and 6 to 8 split a backward pass; elsewhere it is whole. A slot's messages
leave when all of it is done, also those of F&B.

    bubble        (h − 1)(F&B + B − 3W), B here a whole backward pass; reached where F = B's part for inputs = W
    in flight     2h + 1 micro-batches of a stage each, on all ranks alike; h = p/2 in DualPipe, h = p in DualPipeV

Pictures as in zero_bubble.py.
"""

from impls.parallelism.pipeline_parallel.plan import Plan, Slot, numbered


def phases(h: int, r: int, n: int) -> list[str]:
    """The slots of the r-th of the h ranks before the middle."""
    slots = ["F0"] * 2 * (h - r - 1)  # 1
    slots += ["F0", "F1"] * (r + 1)  # 2
    slots += ["B1", "W", "F1"] * (h - r - 1)  # 3
    main = ["F0 B1 W", "F1 B0 W"] * (n - 2 * h + r + 1)  # 4
    if r == h - 1:  # in the middle the first two are apart, which shortens the bubble
        main = ["F0", "B1 W", *main[1:]]
    slots += main
    slots += ["B1 W", "F1 B0 W"] * (h - r - 1)  # 5
    slots += [f"B{1 - i % 2}" + " W" * (i <= r) for i in range(2 * (r + 1))]  # 6: B1, B0; the first half are whole
    slots += ["W", "B0"] * (h - r - 1)  # 7
    return slots + ["W"] * (r + 1)  # 8


def dual_pipe(p: int, m: int) -> Plan:
    """Two copies of the model, one from each end, and half of the micro-batches enter at each. Raises ValueError unless
    p and m are even and m ≥ 2p.

    p = 4, m = 8, F = B = W = 1        0124eE53fF.6aAgG.7bBhHcCdD
                                       .04152eE6aA3fF7bBgGcC.hdHD
                                       .40516aA2eE7bB3fFcCgG.dhDH
                                       4560aA17bB.2eEcC.3fFdDgGhH
    """
    if p % 2 or m % 2 or m < 2 * p:
        raise ValueError(f"DualPipe takes an even number of ranks and of micro-batches, at least 2p, not {p} and {m}")
    n, ranks = m // 2, []
    for rank in range(p):
        r = min(rank, p - 1 - rank)
        ways = [(rank, 0), (2 * p - 1 - rank, n)]  # the first copy's stage and first micro-batch; the second's
        (stage0, micro0), (stage1, micro1) = ways if rank < p // 2 else ways[::-1]
        ranks.append(numbered(phases(p // 2, r, n), (stage0, stage1), (micro0, micro1)))
    return Plan(tuple(ranks), (*range(p), *reversed(range(p))), p)


def dual_pipe_v(p: int, m: int) -> Plan:
    """One copy of the model in the shape of a V: what DualPipe's upper half of the ranks does, with the stages on the
    way up in the place of the second copy ("cut in half", Sea AI Lab 2025). Raises ValueError unless m ≥ 2p.

    p = 2, m = 4, F = B = W = 1        0120aA13bB.2aAcC.3bBdDcCdD
                                       .00112aA2aA3bB3bBcCcC.ddDD
    """
    if m < 2 * p:
        raise ValueError(f"DualPipeV takes at least 2p micro-batches: {m} are fewer than {2 * p}")
    ranks: list[tuple[Slot, ...]] = [numbered(phases(p, r, m), (r, 2 * p - 1 - r)) for r in range(p)]
    return Plan(tuple(ranks), (*range(p), *reversed(range(p))), 2 * p)
