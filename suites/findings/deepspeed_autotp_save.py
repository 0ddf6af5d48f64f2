"""DeepSpeed's save_16bit_model() writes only rank 0's half of each weight under AutoTP, and returns True.

A user trains with AutoTP over two ranks at ZeRO stage 0, 1 or 2 and saves the model. save_16bit_model() gathers what
ZeRO-3 has partitioned, but not what AutoTP has cut; _consolidated_16bit_state_dict(), which it does not call, does.
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

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start
CUT = [{"patterns": ["0.weight"], "partition_type": "column"}, {"patterns": ["1.weight"], "partition_type": "row"}]
CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "tensor_parallel": {"autotp_size": 2, "partition_config": {"use_default_specs": False, "layer_specs": CUT}},
}


def save(rank: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.Linear(8, 4, bias=False))
    whole = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
    saved, gathered = engine.save_16bit_model(folder, "saved.pt"), engine._consolidated_16bit_state_dict()
    if rank == 0 and not (saved and all(torch.equal(gathered[name], whole[name]) for name in whole)):
        raise RuntimeError("save_16bit_model() did not save, or the weights cannot be gathered either")
    torch.save(whole, f"{folder}/whole{rank}.pt")


try:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(save, (folder,), nprocs=2, start_method="fork")
        whole, saved = torch.load(f"{folder}/whole0.pt"), torch.load(f"{folder}/saved.pt")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
for title, weights in (("expected", whole), ("found   ", saved)):
    print(title, {name: f"{tuple(weight.shape)}, norm {weight.norm():.4f}" for name, weight in weights.items()})
wrong = any(not torch.equal(saved[name], whole[name]) for name in whole)
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
