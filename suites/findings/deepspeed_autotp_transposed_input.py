"""DeepSpeed's AutoTP does not sum the gradient of a column-parallel layer's input if that input is a transposed tensor.

A user's model transposes an activation before a linear layer, as after a convolution at batch size 1. The gradient then
has transposed strides too: AutoTP all-reduces a contiguous copy of it, and returns the gradient itself.
"""

import logging
import os
import sys
import tempfile
import warnings

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed.ops
import torch
import torch._dynamo  # DeepSpeed imports it for seconds: once, before the ranks start
import torch.distributed as dist

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start

CUT = [{"patterns": ["0.weight"], "partition_type": "column"}, {"patterns": ["1.weight"], "partition_type": "row"}]
CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "tensor_parallel": {"autotp_size": 2, "partition_config": {"use_default_specs": False, "layer_specs": CUT}},
}


def gradient(transposed: bool) -> torch.Tensor:
    """The gradient of the same input, in memory as it is or transposed."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.Linear(8, 4, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
    x = torch.arange(24.0).view(1, 4, 6).requires_grad_()
    tokens = x.transpose(1, 2) if transposed else x.transpose(1, 2).contiguous()
    engine.backward(engine(tokens).square().sum())
    return x.grad


def train(rank: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    torch.save([gradient(transposed) for transposed in (False, True)], f"{folder}/{rank}.pt")


with tempfile.TemporaryDirectory() as folder:
    torch.multiprocessing.start_processes(train, (folder,), nprocs=2, start_method="fork")
    (expected, found), (other, _) = (torch.load(f"{folder}/{rank}.pt") for rank in range(2))
if not torch.equal(expected, other):
    raise RuntimeError("with a contiguous input, the two ranks have different gradients as well")
off = ((found - expected).norm() / expected.norm()).item()
print(f"expected a gradient of norm {expected.norm():.3f}, as with a contiguous copy of the input")
print(f"found    a gradient of norm {found.norm():.3f} on rank 0, relative difference {off:.1e}")
wrong = off > 1e-3
print("still there" if wrong else "gone")
sys.exit(wrong)
