"""DeepSpeed's bf16 pipelines keep every gradient twice.

A user trains a PipelineModule in bf16. BF16_Optimizer adds each gradient to a flat buffer of its own and leaves the
parameter's gradient until the end of the step; the option immediate_grad_update, off by default, frees it at once.
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
from deepspeed.pipe import PipelineModule

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start


def held(immediately: bool) -> int:
    """Bytes of gradients when the optimizer steps: the parameters' and its own flat buffer."""
    counted = []
    layers = [torch.nn.Linear(64, 64, bias=False).bfloat16()]
    model = PipelineModule(layers, num_stages=1, loss_fn=torch.nn.functional.mse_loss)
    config = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True, "immediate_grad_update": immediately}}
    config["data_types"] = {"grad_accum_dtype": "bf16"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

    def count(*_: object) -> None:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        counted.append(sum(gradient.nbytes for gradient in gradients + engine.optimizer.fp32_groups_gradients_flat))

    optimizer.register_step_pre_hook(count)
    batch = torch.ones(1, 64, dtype=torch.bfloat16)
    engine.train_batch(iter([(batch, batch)]))
    return counted[0]


try:
    with contextlib.redirect_stdout(None):  # a PipelineModule prints
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        deepspeed.init_distributed()  # a PipelineModule asks for its ranks
        expected, found = held(immediately=True), held(immediately=False)
    if expected != 64 * 64 * 2:
        raise RuntimeError(f"with immediate_grad_update, {expected} B are held instead of {64 * 64 * 2} B")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected {expected} B of gradients, 2 B a parameter, as with immediate_grad_update")
print(f"found    {found} B")
wrong = found > 1.5 * expected
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
