"""DeepSpeed's fp32 clipping leaves other ranks' experts out of the norm under expert parallelism.

A user trains a mixture of experts in fp32, with its experts spread over two ranks. clip_grad_norm_ takes the norm of
each rank's own gradients and averages these norms over the ranks, as if every rank had all experts.
"""

import contextlib
import os
import sys
import tempfile

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed.ops
import torch
import torch._dynamo  # DeepSpeed imports it for seconds: once, before the ranks start
import torch.distributed as dist
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import is_moe_param

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start


def update(rank: int, ep_size: int) -> float:
    """The norm of one SGD step with a learning rate of 1, with each expert counted once."""
    torch.manual_seed(0)
    expert = torch.nn.Linear(4, 4, bias=False)
    model = MoE(4, expert, num_experts=2, ep_size=ep_size, capacity_factor=2.0, use_rts=False)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    config = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 1.0}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    tokens = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(rank))
    engine.backward(100 * engine(tokens)[0].square().sum())
    engine.step()
    square = torch.zeros(())
    for old, new in zip(before, model.parameters(), strict=True):
        if rank == 0 or (ep_size == 2 and is_moe_param(new)):
            square += (old - new.detach()).square().sum()
    dist.all_reduce(square)
    return square.sqrt().item()


def train(rank: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    with contextlib.redirect_stdout(None):  # an MoE prints its groups
        torch.save([update(rank, ep_size) for ep_size in (1, 2)], f"{folder}/{rank}.pt")


with tempfile.TemporaryDirectory() as folder:
    torch.multiprocessing.start_processes(train, (folder,), nprocs=2, start_method="fork")
    whole, found = torch.load(f"{folder}/0.pt")
if abs(whole - 1) > 1e-3:
    raise RuntimeError(f"with all experts on each rank, the clipped step has norm {whole} instead of 1")
print(f"expected a step of norm 1.0000, to which it is clipped; {whole:.4f} with all experts on each rank")
print(f"found    a step of norm {found:.4f} with one expert on each rank, relative difference {found - 1:.1e}")
wrong = abs(found - 1) > 1e-3
print("still there" if wrong else "gone")
sys.exit(wrong)
