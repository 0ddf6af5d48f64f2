"""DeepSpeed's norm of the gradients is rank 0's part under AutoTP in bf16 or fp16 at stage 0.

A user trains with AutoTP, a PyTorch optimizer and gradient_clipping, which is 1.0 unless it is set. The norm is taken
of a list of gradients, but only parameters are marked as cut: on other ranks than 0 all are passed over as replicas.
"""

import logging
import os
import sys
import tempfile

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed.ops
import torch
import torch.distributed as dist

logging.disable(logging.WARNING)
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start

CUT = [{"patterns": ["0.weight"], "partition_type": "column"}, {"patterns": ["1.weight"], "partition_type": "row"}]
CONFIG = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_allow_untested_optimizer": True}
CONFIG["tensor_parallel"] = {"autotp_size": 2, "partition_config": {"use_default_specs": False, "layer_specs": CUT}}
INPUT = torch.ones(1, 8, dtype=torch.bfloat16)


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False)).bfloat16()


def norm(stage: int) -> float:
    layers, config = model(), CONFIG | {"zero_optimization": {"stage": stage}}
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=layers, optimizer=optimizer, config=config)
    engine.backward(engine(INPUT).float().square().sum())
    engine.step()
    return float(engine.get_global_grad_norm())


def train(rank: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    torch.save([norm(stage) for stage in (1, 0)], f"{folder}/{rank}.pt")


with tempfile.TemporaryDirectory() as folder:
    torch.multiprocessing.start_processes(train, (folder,), nprocs=2, start_method="fork")
    expected, found = torch.load(f"{folder}/0.pt")
dense = model()
dense(INPUT).float().square().sum().backward()
norm_of_one = torch.nn.utils.get_total_norm([p.grad.float() for p in dense.parameters()]).item()
assert abs(expected / norm_of_one - 1) < 1e-2, "at stage 1 the norm is wrong, too"  # bf16 has 8 bits
print(f"expected a norm of {expected:.4f}, as at stage 1; {norm_of_one:.4f} by PyTorch on one rank")
print(f"found    a norm of {found:.4f} at stage 0, relative difference {found / expected - 1:.1e}")
wrong = abs(found / expected - 1) > 5e-2
print("still there" if wrong else "gone")
sys.exit(wrong)
