"""DeepSpeed's ZenFlow puts the elements of every matrix into another order in initialize().

A user adds the section "zenflow" to ZeRO-2 with its optimizer on the CPU. ZenFlow flattens matrices transposed, but the
optimizer takes the weights from the flat buffer in their own shape: pretrained weights are lost before the first step.
"""

import logging
import os
import sys

os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
import deepspeed.ops
import torch
import torch.distributed as dist

logging.disable(logging.WARNING)
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start
ZENFLOW = {"topk_ratio": 0.5, "select_strategy": "step", "select_interval": 2, "update_interval": 2}


def after_initialize(weights: torch.Tensor, **zenflow: dict) -> torch.Tensor:
    """The weights of a linear layer after deepspeed.initialize(), before any step."""
    layer = torch.nn.Linear(3, 2, bias=False)
    layer.weight.data.copy_(weights)
    config = {
        "train_batch_size": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.001}},
        "zero_force_ds_cpu_optimizer": False,  # PyTorch's optimizer: DeepSpeed's own would be compiled first
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, **zenflow},
    }
    optimizer = torch.optim.AdamW(layer.parameters())
    deepspeed.initialize(model=layer, optimizer=optimizer, config=config)
    return layer.weight.detach().clone()


try:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    weights = torch.arange(1.0, 7.0).view(2, 3)
    without, found = after_initialize(weights), after_initialize(weights, zenflow=ZENFLOW)
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
if not torch.equal(without, weights):
    print(f"cannot be judged: without ZenFlow the weights are {without.tolist()} instead of {weights.tolist()}")
    sys.exit(2)
wrong = not torch.equal(found, weights)
print(f"expected {weights.tolist()}, as without ZenFlow")
print(f"found    {found.tolist()}")
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
