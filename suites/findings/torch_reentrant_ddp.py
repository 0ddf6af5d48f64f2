"""DDP over a reentrant checkpoint, several forwards and one backward: gradients are wrong, and the ranks differ.

A user sums the losses of three forwards (tasks, views, micro-batches) and calls backward() once. Each checkpoint runs
a backward of its own, which ends the gradient's accumulation there: DDP reduces after the first of the three.
"""

import sys
import tempfile
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

FORWARDS, WIDTH = 3, 8


class Net(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.use_reentrant = nn.Linear(WIDTH, WIDTH, bias=False), use_reentrant

    def forward(self, x):
        return checkpoint(self.linear, x, use_reentrant=self.use_reentrant).square().mean()


def data():
    torch.manual_seed(1)
    return torch.randn(2, FORWARDS, 4, WIDTH, requires_grad=True)  # ranks, forwards, rows, width


def rank_main(rank, store, grads):
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{store}/ranks", rank=rank, world_size=2)
    for which, use_reentrant in enumerate((False, True)):
        net = Net(use_reentrant)
        ddp = DistributedDataParallel(net)
        sum(ddp(x) for x in data()[rank]).backward()
        grads[which, rank] = net.linear.weight.grad
    dist.destroy_process_group()


def main():
    grads = torch.zeros(2, 2, WIDTH, WIDTH).share_memory_()
    with tempfile.TemporaryDirectory() as store:
        mp.spawn(rank_main, (store, grads), nprocs=2)
    dense = Net(use_reentrant=False)  # one process: the mean over the ranks
    (sum(dense(x) for x in data().flatten(0, 1)) / 2).backward()
    expected = dense.linear.weight.grad
    off = ((grads - expected).norm(dim=(2, 3)) / expected.norm()).tolist()
    print(f"expected gradient norm {expected.norm():.4f} on both ranks (use_reentrant=False: off by {max(off[0]):.1e})")
    norms = " and ".join(f"{g.norm():.4f}" for g in grads[1])
    print(f"found    gradient norms {norms}, off by {off[1][0]:.2f} and {off[1][1]:.2f} with use_reentrant=True")
    if max(off[0]) > 1e-3:
        print("cannot be judged: the control, use_reentrant=False, is wrong too")
        sys.exit(2)
    return max(off[1]) > 1e-3


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
