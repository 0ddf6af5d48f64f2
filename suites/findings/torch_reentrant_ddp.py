"""DDP over a reentrant checkpoint, several forwards and one backward: gradients are wrong, and the ranks differ.

A user sums the losses of three forwards (tasks, views, micro-batches) and calls backward() once. Each checkpoint runs
a backward of its own, which ends the gradient's accumulation there: DDP reduces after the first of the three.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

FORWARDS, WIDTH = 3, 8


class Net(nn.Linear):
    def forward(self, x, use_reentrant):
        return checkpoint(super().forward, x, use_reentrant=use_reentrant).square().mean()


def work():
    torch.manual_seed(0)
    return Net(WIDTH, WIDTH, bias=False), torch.randn(2, FORWARDS, 4, WIDTH, requires_grad=True)  # data of two ranks


def rank_main(rank, store, grads):
    dist.init_process_group("gloo", init_method=f"file://{store}/ranks", rank=rank, world_size=2)
    for which, use_reentrant in enumerate((False, True)):
        net, data = work()
        ddp = DistributedDataParallel(net)
        sum(ddp(x, use_reentrant) for x in data[rank]).backward()
        grads[which, rank] = net.weight.grad
    dist.destroy_process_group()


def main():
    grads = torch.zeros(2, 2, WIDTH, WIDTH).share_memory_()
    with tempfile.TemporaryDirectory() as store:
        mp.start_processes(rank_main, (store, grads), nprocs=2, start_method="fork")
    dense, data = work()
    (sum(dense(x, False) for x in data.flatten(0, 1)) / 2).backward()  # one process: the mean over the ranks
    expected = dense.weight.grad
    off = ((grads - expected).norm(dim=(2, 3)) / expected.norm()).tolist()
    print(f"expected gradient norm {expected.norm():.4f} on both ranks (use_reentrant=False: off by {max(off[0]):.1e})")
    norms = " and ".join(f"{g.norm():.4f}" for g in grads[1])
    print(f"found    gradient norms {norms}, off by {off[1][0]:.2f} and {off[1][1]:.2f} with use_reentrant=True")
    if max(off[0]) > 1e-3:
        raise RuntimeError("the control, use_reentrant=False, is wrong too")
    return max(off[1]) > 1e-3


if __name__ == "__main__":
    wrong = main()
    print("still there" if wrong else "gone")
    sys.exit(wrong)
