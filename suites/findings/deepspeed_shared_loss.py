"""DeepSpeed adds gradients of different scales if a loss also uses the model inside the engine, with accumulation.

A user applies a module twice in a step: once through the engine, and once directly for an auxiliary loss, as to encode
a second input. backward() divides the gradient that passes the engine's output by gradient_accumulation_steps, but not
the other one, which is therefore too large by that factor.
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

MAIN, AUXILIARY, STEPS = 3.0, 5.0, 2  # two inputs, whose gradients they are; accumulation steps


def step(auxiliary: float) -> float:
    """The change of a single weight by one SGD step with a learning rate of 1, after equal micro-batches."""
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    config = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": STEPS}
    config |= {"gradient_clipping": 0.0, "zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for _ in range(STEPS):
        loss = engine(torch.tensor([[MAIN]])).sum()
        if auxiliary:
            loss = loss + engine.module(torch.tensor([[auxiliary]])).sum()
        engine.backward(loss)
        engine.step()
    return before - model.weight.item()


try:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    alone, found = step(0.0), step(AUXILIARY)
    if alone <= 0:
        raise RuntimeError(f"without the auxiliary loss, the step is {alone}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
expected = alone * (MAIN + AUXILIARY) / MAIN  # some releases lose micro-batches, of both gradients alike
print(f"expected a step of {expected:.3f}, as the gradients {MAIN} and {AUXILIARY} and the step of the first alone say")
print(f"found    a step of {found:.3f}, relative difference {found / expected - 1:.1e}")
wrong = abs(found / expected - 1) > 1e-3
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
