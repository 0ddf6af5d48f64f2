"""DeepSpeed's AutoTP makes five all-reduces of input gradients a layer where two do.

A user trains a decoder with separate projections for q, k, v, gate and up over two ranks. Each column-parallel layer
all-reduces the gradient of its input by itself; those of layers with the same input could be added first.
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
from torch.distributed.tensor.debug import CommDebugMode

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start

KINDS = {"cut": "column", "joined": "row"}
CUT = [{"patterns": [rf"{name}\.\d+\.weight"], "partition_type": kind} for name, kind in KINDS.items()]
CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 2,  # the first backward pass reduces no weights' gradients
    "tensor_parallel": {"autotp_size": 2, "partition_config": {"use_default_specs": False, "layer_specs": CUT}},
}


class Layer(torch.nn.Module):
    """A decoder layer's matrices alone: attention is a sum here, and so is the gated feed-forward part."""

    def __init__(self, projections: tuple[int, int]) -> None:
        super().__init__()
        self.cut = torch.nn.ModuleList(torch.nn.Linear(4, 4, bias=False) for _ in range(sum(projections)))
        self.joined = torch.nn.ModuleList(torch.nn.Linear(4, 4, bias=False) for _ in range(2))
        self.attention = projections[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.joined[0](sum(project(x) for project in self.cut[: self.attention]))
        return x + self.joined[1](sum(project(x) for project in self.cut[self.attention :]))


def count(projections: tuple[int, int]) -> int:
    """All-reduces in the backward pass of a layer with so many matrices before attention and in the second part."""
    model = Layer(projections)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
    loss = engine(torch.ones(1, 4, requires_grad=True)).sum()
    with CommDebugMode() as communication:
        engine.backward(loss)
    return communication.get_comm_counts()[torch.ops.c10d.allreduce_]


def train(rank: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    torch.save([count(projections) for projections in ((1, 1), (3, 2))], f"{folder}/{rank}.pt")


try:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(train, (folder,), nprocs=2, start_method="fork")
        expected, found = torch.load(f"{folder}/0.pt")
    if expected != 2:
        raise RuntimeError(f"one projection for each part makes {expected} all-reduces instead of 2")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected {expected} all-reduces in a layer's backward pass, as with q, k, v fused, and gate, up")
print(f"found    {found}")
wrong = found > expected
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
