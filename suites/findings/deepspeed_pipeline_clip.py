"""DeepSpeed's fp32 pipelines clip by the first stage's norm instead of the whole model's.

A user trains a PipelineModule over two ranks in fp32; gradient_clipping is 1.0 unless it is set. clip_grad_norm_ takes
a stage for a model-parallel rank: it counts the parameters of rank 0 alone, so the update is longer than allowed.
"""

import contextlib
import copy
import os
import sys
import tempfile

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed.ops
import torch
import torch._dynamo  # DeepSpeed imports it for seconds: once, before the ranks start
import torch.distributed as dist
from deepspeed.pipe import PipelineModule
from torch.nn.functional import mse_loss

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start

INPUTS, TARGETS = torch.ones(1, 4), torch.full((1, 4), 9.0)
torch.manual_seed(0)
LAYERS = [torch.nn.Linear(4, 4, bias=False) for _ in range(2)]


def update(clipping: dict[str, float]) -> float:
    """The norm of one SGD step with a learning rate of 1 over both stages."""
    model = PipelineModule(copy.deepcopy(LAYERS), 2, loss_fn=mse_loss, partition_method="uniform")
    before = (weight := next(model.parameters())).detach().clone()
    config = {"train_micro_batch_size_per_gpu": 1, **clipping}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    engine.train_batch(iter([(INPUTS, TARGETS)]))
    dist.all_reduce(square := (before - weight.detach()).square().sum())
    return square.sqrt().item()


def train(rank: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    deepspeed.init_distributed()  # a PipelineModule asks for its ranks
    with contextlib.redirect_stdout(None):  # a PipelineModule prints its layers
        torch.save((update({"gradient_clipping": 0.0}), update({})), f"{folder}/{rank}.pt")


with tempfile.TemporaryDirectory() as folder:
    torch.multiprocessing.start_processes(train, (folder,), nprocs=2, start_method="fork")
    unclipped, found = torch.load(f"{folder}/0.pt")
dense = torch.nn.Sequential(*LAYERS)
mse_loss(dense(INPUTS), TARGETS).backward()
norm = torch.nn.utils.get_total_norm([p.grad for p in dense.parameters()]).item()
assert abs(unclipped / norm - 1) < 1e-3, "without clipping, the pipeline's step is wrong, too"
expected = min(norm, 1.0)
print(f"expected {expected:.4f}: the norm of a step whose gradients, of norm {norm:.4f}, are clipped to 1")
print(f"found    {found:.4f}, relative difference {found / expected - 1:.1e}")
wrong = abs(found / expected - 1) > 1e-3
print("still there" if wrong else "gone")
sys.exit(wrong)
