"""DeepSpeed's ZeRO-3 holds the weights twice in fp32.

A user trains with ZeRO-3 in fp32 or with torch_autocast, without offloading. The optimizer would take the weights
themselves as its master copy, but looks whether torch.device("cpu") == "cpu" (or a GPU's name), which is never true.
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


def held(stage: int) -> int:
    """Bytes of the weights and of the optimizer's masters; a storage that both use is counted once."""
    model = torch.nn.Linear(64, 64, bias=False)
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}
    config["zero_allow_untested_optimizer"] = True
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if stage == 3:
        tensors = engine.optimizer.fp16_partitioned_groups_flat + engine.optimizer.fp32_partitioned_groups_flat
    else:
        tensors = list(model.parameters()) + engine.optimizer.param_groups[0]["params"]
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())


try:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    expected, found = held(stage=0), held(stage=3)
    if expected != 64 * 64 * 4:
        raise RuntimeError(f"without ZeRO, {expected} B are held instead of {64 * 64 * 4} B")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected {expected} B of weights and masters, as without ZeRO; on one rank, nothing is partitioned")
print(f"found    {found} B at stage 3")
wrong = found > 1.5 * expected
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
