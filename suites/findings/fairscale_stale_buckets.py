"""ShardedDataParallel with optimizer.zero_grad() averages no gradients after the first step.

A user writes the usual loop: backward(), step(), optimizer.zero_grad(), which since PyTorch 2.0 sets gradients to None.
They were views of ShardedDataParallel's buckets. The next ones are not, so old buckets are reduced from then on, and
each parameter is updated by the gradient that its owner alone has computed.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fairscale.nn.data_parallel import ShardedDataParallel
from fairscale.optim.oss import OSS
from torch import nn

STEPS, LEARNING_RATE = 3, 0.1


def work():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), torch.randn(STEPS, 2, 4, 8)  # steps, ranks, rows


def rank_main(rank, store, weights):
    dist.init_process_group("gloo", init_method=f"file://{store}/ranks", rank=rank, world_size=2)
    for which in range(2):
        net, data = work()
        optimizer = OSS(net.parameters(), torch.optim.SGD, lr=LEARNING_RATE)
        sharded = ShardedDataParallel(net, optimizer)
        for x in data[:, rank]:
            sharded(x).square().mean().backward()
            optimizer.step()
            (optimizer if which else sharded).zero_grad()
        weights[which, rank] = nn.utils.parameters_to_vector(net.parameters()).detach()
    dist.destroy_process_group()


if __name__ == "__main__":
    weights = torch.zeros(2, 2, 2 * (8 * 8 + 8)).share_memory_()  # zero_grad() of the wrapper and the optimizer, ranks
    with tempfile.TemporaryDirectory() as store:
        mp.start_processes(rank_main, (store, weights), nprocs=2, start_method="fork")
    dense, data = work()
    start = nn.utils.parameters_to_vector(dense.parameters()).detach()
    optimizer = torch.optim.SGD(dense.parameters(), lr=LEARNING_RATE)
    for x in data.flatten(1, 2):  # one process, both ranks' rows
        optimizer.zero_grad()
        dense(x).square().mean().backward()
        optimizer.step()
    moved = nn.utils.parameters_to_vector(dense.parameters()).detach() - start
    off = ((weights - start - moved).norm(dim=2) / moved.norm()).amax(1).tolist()
    print(f"expected weights move by {moved.norm():.4f} in {STEPS} steps (wrapper's zero_grad(): off by {off[0]:.1e})")
    print(f"found    {(weights[1, 0] - start).norm():.4f} with optimizer.zero_grad(), off by {off[1]:.2f}")
    if off[0] > 1e-3:
        raise RuntimeError("the control, the wrapper's own zero_grad(), is wrong too")
    wrong = off[1] > 1e-3
    print("still there" if wrong else "gone")
    sys.exit(wrong)
