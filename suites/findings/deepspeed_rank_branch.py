"""DeepSpeed's ZeRO adds the gradients of different layers if ranks take different branches.

A user's model takes a branch that depends on the data, as for an image in one rank's batch. ZeRO puts gradients into
buckets in the order in which they come, and sums the ranks' buckets without looking which parameters are in them.
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


class Branches(torch.nn.ModuleList):
    def forward(self, branch: int) -> torch.Tensor:
        return self[branch](torch.full((1, 1), branch + 1.0)).sum()


def step(rank: int, stage: int) -> list[float]:
    """The change of each layer's weight by an SGD step; rank 0 uses the first layer, rank 1 the second."""
    model = Branches(torch.nn.Linear(1, 1, bias=False) for _ in range(2))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    config = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0, "zero_optimization": {"stage": stage}}
    config["zero_allow_untested_optimizer"] = True
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    engine.backward(engine(branch=rank))
    engine.step()
    return [0 - parameter.item() for parameter in model.parameters()]


def train(rank: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    torch.save([step(rank, stage) for stage in (0, 1, 2)], f"{folder}/{rank}.pt")


with tempfile.TemporaryDirectory() as folder:
    torch.multiprocessing.start_processes(train, (folder,), nprocs=2, start_method="fork")
    without_zero, *found = torch.load(f"{folder}/0.pt")
if without_zero != [0.5, 1.0]:
    raise RuntimeError(f"without ZeRO, the steps are {without_zero} instead of [0.5, 1.0]")
print(f"expected steps of {without_zero}: half of 1 and of 2, the mean over the ranks, as without ZeRO")
for stage, steps in enumerate(found, 1):
    print(f"found    steps of {steps} at stage {stage}")
wrong = any(steps != without_zero for steps in found)
print("still there" if wrong else "gone")
sys.exit(wrong)
