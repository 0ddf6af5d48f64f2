"""DeepSpeed's stage 0 steps once on zero gradients when a bf16 or fp16 engine is made.

A user trains in bf16 without ZeRO with AdamW. To allocate its states, the engine calls the optimizer's step(), which
counts it and decays the weights: the first real step is corrected as the second one, and is a quarter too short.
"""

import logging
import os
import sys
import warnings

os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
import deepspeed.ops
import torch
import torch.distributed as dist

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start


def first_step(stage: int) -> float:
    """A weight of 0 after one AdamW step with a learning rate of 1 and a gradient of 1."""
    model = torch.nn.Linear(1, 1, bias=False).bfloat16()
    torch.nn.init.zeros_(model.weight)
    config = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": stage}}
    config["zero_allow_untested_optimizer"] = True
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    engine.backward(engine(torch.ones(1, 1, dtype=torch.bfloat16)).sum())
    engine.step()
    return model.weight.item()


try:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    found, expected = first_step(stage=0), first_step(stage=1)
    weight = torch.nn.Parameter(torch.zeros(()))
    weight.grad = torch.ones(())
    torch.optim.AdamW([weight], lr=1.0).step()
    if abs(expected / weight.item() - 1) > 1e-2:
        raise RuntimeError(f"stage 1 gives {expected} where PyTorch gives {weight.item()}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected a weight of {expected:.4f} after AdamW's first step from 0, as in PyTorch and at stage 1")
print(f"found    a weight of {found:.4f} at stage 0, relative difference {found / expected - 1:.1e}")
wrong = abs(found / expected - 1) > 1e-2  # a weight in bf16 has 8 bits
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
