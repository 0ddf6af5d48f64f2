"""The sizes of a grouped product, derived from a workload: an expert layer's gate and up projections."""

import random
from itertools import accumulate
from typing import NamedTuple

from harness.spec import MoeConfig, Workload

BLOCK = 128  # elements that share a scale: 1 × 128 of x, 128 × 128 of w


class Sizes(NamedTuple):
    rows: tuple[int, ...]  # m_g, the valid rows of each group
    capacity: int  # rows that each group has room for; 0 where groups follow one another
    n: int  # outputs
    k: int  # inputs

    @property
    def held(self) -> int:
        """Rows of x in memory."""
        return self.capacity * len(self.rows) or sum(self.rows)


def sizes(workload: Workload, layout: str) -> Sizes:
    """Dense: all groups are equal. Contiguous: they have 0.3 to 1.7 times the mean, and the middle one has no row.
    Masked: there is room for 1.5 times the mean; the first group fills it, and the middle one is empty. The
    seed does not matter: a step's work is the same for all inputs."""
    model = workload.model
    experts = model if isinstance(model, MoeConfig) else MoeConfig(**vars(model))
    groups, n, k = experts.num_experts, 2 * experts.moe_intermediate_size, experts.hidden_size
    total = workload.tokens * experts.num_experts_per_tok
    mean = max(1, total // groups)
    if layout == "dense":
        return Sizes((mean,) * groups, mean, n, k)
    chance = random.Random(0)
    if layout == "contiguous":
        shares = [chance.uniform(0.3, 1.7) for _ in range(groups)]
        shares[groups // 2] = 0.0
        ends = [round(total * share / sum(shares)) for share in accumulate(shares)]
        return Sizes(tuple(end - start for start, end in zip([0, *ends], ends, strict=False)), 0, n, k)
    capacity = 1 + mean * 3 // 2
    rows = [capacity, *(chance.randrange(capacity) for _ in range(groups - 1))]
    rows[groups // 2] = 0
    return Sizes(tuple(rows), capacity, n, k)
