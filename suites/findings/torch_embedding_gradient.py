"""A row-wise DTensor embedding keeps the gradient of the whole table on every rank.

A user cuts an embedding by rows over 2 tensor-parallel ranks, as torchtitan's plans do. The rule for the embedding's
backward has no output that is cut by rows, so each rank makes V × h elements of gradient for its V/2 × h of weights.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

VOCABULARY, WIDTH = 64, 8


def work():
    torch.manual_seed(0)
    return nn.Embedding(VOCABULARY, WIDTH), torch.randint(0, VOCABULARY, (2, 16)), torch.randn(2, 16, WIDTH)


def rank_main(rank, store, sizes, off):
    dist.init_process_group("gloo", init_method=f"file://{store}/ranks", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    embedding, ids, upstream = work()
    (embedding(ids) * upstream).sum().backward()
    dense = embedding.weight.grad.clone()
    embedding, ids, upstream = work()
    embedding = parallelize_module(embedding, mesh, RowwiseParallel(input_layouts=Replicate()))
    (embedding(ids) * upstream).sum().backward()
    grad = embedding.weight.grad
    sizes[0], sizes[1] = embedding.weight.to_local().numel(), grad.to_local().numel()  # the same on both ranks
    off[0] = (grad.full_tensor() - dense).norm() / dense.norm()
    dist.destroy_process_group()


def main():
    sizes, off = torch.zeros(2, dtype=torch.int64).share_memory_(), torch.zeros(1).share_memory_()
    with tempfile.TemporaryDirectory() as store:
        mp.start_processes(rank_main, (store, sizes, off), nprocs=2, start_method="fork")
    (expected, found), off, whole = sizes.tolist(), off.item(), VOCABULARY * WIDTH
    print(f"expected {expected} gradient elements on a rank, one for each of its weights")
    print(f"found    {found}, the table has {whole}; as a whole the gradient is right (off by {off:.1e})")
    if off > 1e-3 or expected != whole // 2:
        raise RuntimeError("the table is not cut by rows, or its gradient is wrong")
    return found > expected


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
