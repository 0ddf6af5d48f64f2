"""DeepSpeed leaves all experts out of the norm of the gradients in bf16 or fp16 at stage 0.

A user trains a mixture of experts with a PyTorch optimizer and gradient_clipping, which is 1.0 unless it is set. The
optimizer's wrapper sorts the gradients into shared ones and experts', and takes the norm of the shared ones alone.
"""

import contextlib
import logging
import os
import sys
import warnings

os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer as split

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start


def norms(stage: int) -> tuple[float, float]:
    """The norm of the gradients, and the norm that the engine clips by."""
    torch.manual_seed(0)
    model = MoE(4, torch.nn.Linear(4, 4, bias=False), num_experts=2, capacity_factor=2.0, use_rts=False).bfloat16()
    optimizer = torch.optim.SGD(split({"params": list(model.parameters()), "name": "all"}), lr=0.1)
    config = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": stage}}
    config["zero_allow_untested_optimizer"] = True
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    tokens = torch.randn(1, 16, 4, dtype=torch.bfloat16)
    gradients = torch.autograd.grad(model(tokens)[0].square().sum(), list(model.parameters()))
    engine.backward(engine(tokens)[0].square().sum())
    engine.step()
    right = torch.nn.utils.get_total_norm([gradient.float() for gradient in gradients])
    return right.item(), float(engine.get_global_grad_norm())


try:
    with contextlib.redirect_stdout(None):  # an MoE prints its groups
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        (expected, found), (_, with_zero) = norms(stage=0), norms(stage=2)
    if abs(with_zero / expected - 1) > 1e-2:  # bf16 has 8 bits
        raise RuntimeError(f"at stage 2 the norm is {with_zero}, by PyTorch {expected}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected a norm of {expected:.4f} by PyTorch; {with_zero:.4f} at stage 2")
print(f"found    a norm of {found:.4f} at stage 0, relative difference {found / expected - 1:.1e}")
wrong = abs(found / expected - 1) > 5e-2
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
