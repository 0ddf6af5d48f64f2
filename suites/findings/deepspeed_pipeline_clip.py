"""DeepSpeed's fp32 pipelines clip by the first stage's norm instead of the whole model's.

A user trains a PipelineModule over two ranks in fp32; gradient_clipping is 1.0 unless it is set. clip_grad_norm_ takes
a stage for a model-parallel rank: it counts the parameters of rank 0 alone, so the update is longer than allowed.
"""

import contextlib
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
from deepspeed.pipe import PipelineModule

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start

INPUTS, TARGETS = torch.ones(1, 4), torch.full((1, 4), 9.0)


def layers() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    return [torch.nn.Linear(4, 4, bias=False) for _ in range(2)]


def update(clipping: dict[str, float]) -> float:
    """The norm of one SGD step with a learning rate of 1 over both stages."""
    model = PipelineModule(layers(), num_stages=2, loss_fn=torch.nn.functional.mse_loss, partition_method="uniform")
    weight = next(model.parameters())
    before = weight.detach().clone()
    config = {"train_micro_batch_size_per_gpu": 1, **clipping}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    engine.train_batch(iter([(INPUTS, TARGETS)]))
    square = (before - weight.detach()).square().sum()
    dist.all_reduce(square)
    return square.sqrt().item()


def train(rank: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    deepspeed.init_distributed()  # a PipelineModule asks for its ranks
    with contextlib.redirect_stdout(None):  # a PipelineModule prints its layers
        torch.save((update({"gradient_clipping": 0.0}), update({})), f"{folder}/{rank}.pt")


try:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(train, (folder,), nprocs=2, start_method="fork")
        unclipped, found = torch.load(f"{folder}/0.pt")
    dense = torch.nn.Sequential(*layers())
    torch.nn.functional.mse_loss(dense(INPUTS), TARGETS).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in dense.parameters()]).item()
    if abs(unclipped / norm - 1) > 1e-3:
        raise RuntimeError(f"without clipping, the pipeline's step is {unclipped} instead of {norm}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
expected = min(norm, 1.0)
print(f"expected {expected:.4f}: the norm of a step whose gradients, of norm {norm:.4f}, are clipped to 1")
print(f"found    {found:.4f}, relative difference {found / expected - 1:.1e}")
wrong = abs(found / expected - 1) > 1e-3
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
