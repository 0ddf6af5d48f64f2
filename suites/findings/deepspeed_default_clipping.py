"""DeepSpeed clips gradients at a norm of 1.0 although the user set no clipping.

A user upgrades, and every step whose gradient norm exceeds 1 is scaled down: the default of gradient_clipping was 0, no
clipping, and is 1.0 now.
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

INPUT = 3.0  # which is the gradient


def step(**more: float) -> float:
    """The change of a single weight by one SGD step with a learning rate of 1."""
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}, **more}
    config["zero_allow_untested_optimizer"] = True
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    engine.backward(engine(torch.tensor([[INPUT]])).sum())
    engine.step()
    return before - model.weight.item()


try:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    off, found = step(gradient_clipping=0.0), step()
    if abs(off / INPUT - 1) > 1e-3:
        raise RuntimeError(f"with gradient_clipping at 0, the step is {off} instead of {INPUT}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected a step of {INPUT:.3f}, the gradient, as with gradient_clipping at 0")
print(f"found    a step of {found:.3f} without that setting")
wrong = abs(found / INPUT - 1) > 1e-3
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
