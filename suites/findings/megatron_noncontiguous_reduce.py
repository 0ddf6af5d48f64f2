"""Megatron-Core does not reduce a tensor that is not contiguous: the input comes back as it was.

A user calls `reduce_from_tensor_model_parallel_region(x)` with a transposed `x`. `_reduce` all-reduces
`x.contiguous()`, which is then a copy, and returns `x` itself.
"""

import logging
import sys
import tempfile
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")  # absent GPU packages
try:
    from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
except ImportError as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x = torch.full((3, 4), rank + 1.0)
    found = [reduce_from_tensor_model_parallel_region(t, dist.group.WORLD) for t in (x.clone(), x.T.contiguous().T)]
    torch.save(found, f"{folder}/{rank}")
    dist.barrier()


def main() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, (folder,), nprocs=2, start_method="fork")
        contiguous, transposed = torch.load(f"{folder}/0")
    print(f"expected {contiguous[0, 0]:.1f} in every element: 1 from rank 0 and 2 from rank 1 (a contiguous tensor)")
    print(f"found    {transposed[0, 0]:.1f} on rank 0 (a transposed tensor)")
    if not torch.equal(contiguous, torch.full((3, 4), 3.0)):
        raise RuntimeError("a contiguous tensor was not reduced either")
    return not torch.equal(transposed, contiguous)


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
