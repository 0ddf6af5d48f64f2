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
import deepspeed
import deepspeed.ops
import torch
import torch._dynamo  # DeepSpeed imports it for seconds: once, before the ranks start
import torch.distributed as dist

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start

INPUT = torch.ones(1, 4)


class Branches(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4, bias=False) for _ in range(2))

    def forward(self, branch: int) -> torch.Tensor:
        return self.layers[branch](INPUT).square().sum()


def step(rank: int, stage: int) -> torch.Tensor:
    """One SGD step with a learning rate of 1; rank 0 uses the first layer, rank 1 the second."""
    model = Branches()
    config = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0, "zero_optimization": {"stage": stage}}
    config["zero_allow_untested_optimizer"] = True
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    engine.backward(engine(branch=rank))
    engine.step()
    return torch.stack(
        [old - new for old, new in zip(Branches().parameters(), model.parameters(), strict=True)]
    ).detach()


def train(rank: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    torch.save([step(rank, stage) for stage in (0, 1, 2)], f"{folder}/{rank}.pt")


def off(found: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


try:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(train, (folder,), nprocs=2, start_method="fork")
        without_zero, *found = torch.load(f"{folder}/0.pt")
    model = Branches()
    sum(model(branch) / 2 for branch in range(2)).backward()
    expected = torch.stack([parameter.grad for parameter in model.parameters()])
    if off(without_zero) > 1e-3:
        raise RuntimeError(f"without ZeRO, the step is wrong as well, by {off(without_zero):.1e}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print("expected step of each layer: norms", expected.norm(dim=(1, 2)).tolist(), "by autograd and by stage 0")
for stage, steps in enumerate(found, 1):
    print(
        f"found    at stage {stage}:   norms", steps.norm(dim=(1, 2)).tolist(), f"relative difference {off(steps):.1e}"
    )
wrong = max(map(off, found)) > 1e-3
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
