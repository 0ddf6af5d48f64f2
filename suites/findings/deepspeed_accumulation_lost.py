"""DeepSpeed's ZeRO 2 steps on the last micro-batch of an accumulation alone.

A user accumulates gradients as the manual says: gradient_accumulation_steps is set, and each micro-batch has its
backward() and its step(). The gradients of all but the last micro-batch are lost, and the step is divided by their
number all the same.
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

INPUTS = torch.tensor([2.0, 3.0, 7.0]).view(3, 1, 1)  # one a micro-batch, whose gradient it is


def step(stage: int) -> float:
    """The change of a single weight by one SGD step with a learning rate of 1 after three micro-batches."""
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    config = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": len(INPUTS)}
    config |= {"gradient_clipping": 0.0, "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for x in INPUTS:
        engine.backward(engine(x).sum())
        engine.step()
    return before - model.weight.item()


try:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    without_zero, found = step(0), step(2)
    expected = INPUTS.mean().item()
    if abs(without_zero / expected - 1) > 1e-3:
        raise RuntimeError(f"without ZeRO, the step is {without_zero} instead of {expected}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected a step of {expected:.3f}, the mean of the gradients 2, 3 and 7, as without ZeRO ({without_zero:.3f})")
print(f"found    a step of {found:.3f} at stage 2, relative difference {found / expected - 1:.1e}")
wrong = abs(found / expected - 1) > 1e-3
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
