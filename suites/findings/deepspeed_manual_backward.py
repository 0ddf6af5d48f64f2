"""DeepSpeed's ZeRO 1 and 2 keep only the last of several backward() calls before a step().

A user accumulates gradients by hand, as for two losses, with gradient_accumulation_steps at its default of 1. Each
backward() is then the last of its step: the optimizer replaces the gradients that it has kept instead of adding them.
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

INPUTS = torch.arange(1.0, 4.0).view(3, 1, 1)


def step(stage: int) -> float:
    """The change of a single weight by one SGD step with a learning rate of 1 after three backward() calls."""
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    config = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0, "zero_optimization": {"stage": stage}}
    config["zero_allow_untested_optimizer"] = True
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for x in INPUTS:
        engine.backward(engine(x).sum())
    engine.step()
    return before - model.weight.item()


try:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    without_zero, *found = (step(stage) for stage in range(3))
    expected = INPUTS.sum().item()
    if abs(without_zero / expected - 1) > 1e-3:
        raise RuntimeError(f"without ZeRO, the step is {without_zero} instead of {expected}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected a step of {expected:.3f}, the sum of the gradients 1, 2 and 3, as without ZeRO ({without_zero:.3f})")
for stage, change in enumerate(found, 1):
    print(f"found    a step of {change:.3f} at stage {stage}, relative difference {change / expected - 1:.1e}")
wrong = any(abs(change / expected - 1) > 1e-3 for change in found)
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
