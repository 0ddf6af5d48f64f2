"""The lengths of cached sequences, derived from a workload."""

import random

from harness.spec import Workload

PAGE = 256  # tokens: the smallest that flash-attn takes


def lengths(workload: Workload) -> list[int]:
    """Cached tokens of each sequence, up to the capacity ``sequence_length``: a full one, one of length 1, an empty
    one, and others of any length. The seed does not matter: a step's work is the same for all inputs."""
    chance, capacity = random.Random(0), workload.sequence_length
    drawn = [chance.randint(1, capacity) for _ in range(workload.batch_size)]
    return [capacity, 1, 0, *drawn][: workload.batch_size]


def seen(length: int, queries: int) -> int:
    """Keys that the queries of a sequence see, all together: the last one sees all, each one before one less."""
    return sum(max(0, length - back) for back in range(queries))
