"""DeepSpeed's AutoTP makes five all-reduces of input gradients a layer where two do.

A user trains a decoder with separate projections for q, k, v, gate and up over two ranks. Each column-parallel layer
all-reduces the gradient of its input by itself; those of layers with the same input could be added first.
"""

import os
import sys
import tempfile

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed.ops
import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start

CUT = [{"patterns": [r".*cut\.\d+\.weight"], "partition_type": "column"}]
CUT += [{"patterns": [r".*joined\.weight"], "partition_type": "row"}]
CONFIG = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2}  # the first step reduces no weights
CONFIG["tensor_parallel"] = {"autotp_size": 2, "partition_config": {"use_default_specs": False, "layer_specs": CUT}}


class Half(torch.nn.Module):  # the matrices of half a decoder layer, whose attention or gated product is a sum here
    def __init__(self, projections: int) -> None:
        super().__init__()
        self.cut = torch.nn.ModuleList(torch.nn.Linear(4, 4, bias=False) for _ in range(projections))
        self.joined = torch.nn.Linear(4, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.joined(sum(project(x) for project in self.cut))


def count(*projections: int) -> int:
    model = torch.nn.Sequential(*map(Half, projections))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
    loss = engine(torch.ones(1, 4, requires_grad=True)).sum()
    with CommDebugMode() as communication:
        engine.backward(loss)
    return communication.get_comm_counts()[torch.ops.c10d.allreduce_]


def train(rank: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    torch.save([count(1, 1), count(3, 2)], f"{folder}/{rank}.pt")


with tempfile.TemporaryDirectory() as folder:
    torch.multiprocessing.start_processes(train, (folder,), nprocs=2, start_method="fork")
    expected, found = torch.load(f"{folder}/0.pt")
assert expected == 2, "one projection for each half does not make 2 all-reduces"
print(f"expected {expected} all-reduces in a layer's backward pass, as with q, k, v fused, and gate, up")
print(f"found    {found}")
wrong = found > expected
print("still there" if wrong else "gone")
sys.exit(wrong)
