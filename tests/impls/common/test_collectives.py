"""What gloo lacks, among three ranks: two collectives of a group's ranks, and of some of them."""

import torch
import torch.distributed as dist

from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done, Job, describe
from harness.launch.rank import Context
from impls.common.collectives import all_gather, all_gather_together, reduce_scatter

RANKS, SIZE = 3, 5


def job(context: Context) -> list[list[list[float]]]:
    """Of all ranks and of each pair of neighbours: gathered from elsewhere and in place, reduced to elsewhere and in
    place, two at a time; and two of other sizes gathered together."""
    found = []
    for members in (None, [0, 1], [1, 2]):
        group = dist.new_group(members)
        if members and context.rank not in members:
            continue
        ranks, place = group.size(), group.rank()
        shard = torch.full((SIZE,), float(context.rank))
        there, here = torch.zeros(2, ranks * SIZE)
        here[place * SIZE : (place + 1) * SIZE] = shard
        for work in [all_gather(there, shard, group), all_gather(here, here[place * SIZE : (place + 1) * SIZE], group)]:
            work.wait()
        send, again = (torch.arange(ranks).repeat_interleave(SIZE) + 10.0 * context.rank for _ in range(2))
        apart, inside = torch.zeros(SIZE), again[place * SIZE : (place + 1) * SIZE]
        for reduced in [reduce_scatter(apart, send, group), reduce_scatter(inside, again, group)]:
            reduced.wait()
        first, second = (torch.zeros(ranks * size) for size in (SIZE, 2 * SIZE))
        for output in (first, second):
            output.view(ranks, -1)[place] = context.rank
        all_gather_together([first, second], group)
        found.append([x.tolist() for x in (there, here, apart, inside, first, second)])
    return found


def test_groups_gather_and_reduce_what_is_theirs() -> None:
    with LocalLauncher() as launcher:
        world = launcher.world(RANKS, "collectives", __name__)
        outcomes = world.run(Job(f"{__name__}:job", {}), 60.0)
        world.close()
    assert all(isinstance(outcome, Done) for outcome in outcomes), describe(outcomes)
    groups = [(0, 1, 2), (0, 1), (1, 2)]
    for rank, outcome in enumerate(outcomes):
        assert isinstance(outcome, Done)
        for group, (there, here, apart, inside, first, second) in zip(
            [g for g in groups if rank in g], outcome.value, strict=True
        ):
            whole = [float(member) for member in group for _ in range(SIZE)]
            assert there == here == first == whole
            assert second == [float(member) for member in group for _ in range(2 * SIZE)]
            total = len(group) * group.index(rank) + 10.0 * sum(group)
            assert apart == inside == [total] * SIZE
