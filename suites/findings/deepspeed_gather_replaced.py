"""DeepSpeed's GatherReplacedLayerParams gathers nothing if its parameters come from a generator.

A user reads the whole weight of a layer that AutoTP has cut: with GatherReplacedLayerParams(layer.parameters(), layer).
It makes a list of the generator, and then looks for cut weights in the generator, which is exhausted: none is found.
"""

import logging
import os
import sys
import tempfile
import warnings

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed.ops
import torch
import torch._dynamo  # DeepSpeed imports it for seconds: once, before the ranks start
import torch.distributed as dist
from deepspeed.module_inject.layers import GatherReplacedLayerParams

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start

CUT = [{"patterns": ["0.weight"], "partition_type": "column"}]
CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "tensor_parallel": {"autotp_size": 2, "partition_config": {"use_default_specs": False, "layer_specs": CUT}},
}


def gather(rank: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
    layer = model[0]
    with GatherReplacedLayerParams(list(layer.parameters()), layer):
        of_list = tuple(layer.weight.shape)
    with GatherReplacedLayerParams(layer.parameters(), layer):
        of_generator = tuple(layer.weight.shape)
    torch.save((of_list, of_generator), f"{folder}/{rank}.pt")


try:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(gather, (folder,), nprocs=2, start_method="fork")
        expected, found = torch.load(f"{folder}/0.pt")
    if expected != (8, 4):
        raise RuntimeError(f"given a list, it gathers {expected} instead of (8, 4)")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected {expected}, the shape of the whole weight, as with list(layer.parameters())")
print(f"found    {found} with layer.parameters()")
wrong = found != expected
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
