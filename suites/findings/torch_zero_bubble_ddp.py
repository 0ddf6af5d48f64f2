"""Under PyTorch's zero-bubble pipeline schedules, DistributedDataParallel leaves most gradients unreduced.

A user wraps pipeline stages in DDP and runs ScheduleInterleavedZeroBubble on 2 replicas of 2 pipeline ranks.
The schedule takes the weights' gradients by torch.autograd.grad, which fires none of the hooks that DDP reduces by.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble
from torch.nn.parallel import DistributedDataParallel

STAGES, MICRO_BATCHES, WIDTH = 4, 4, 8


def work():
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)) for _ in range(STAGES)]
    return stages, torch.randn(2, 8, WIDTH), torch.randn(2, 8, WIDTH)  # inputs and targets of two replicas


def rank_main(rank, store, reduced):
    dist.init_process_group("gloo", init_method=f"file://{store}/ranks", rank=rank, world_size=4)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "pp"))
    replica, position = mesh.get_coordinate()
    control, x, y = work()
    F.mse_loss(nn.Sequential(*control)(x.flatten(0, 1)), y.flatten(0, 1)).backward()  # one process, both replicas' rows
    for which, schedule in enumerate((ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble)):
        stages, x, y = work()
        mine = [position, position + 2]
        wrapped = [DistributedDataParallel(stages[i], process_group=mesh.get_group("dp")) for i in mine]
        place = {"num_stages": STAGES, "device": torch.device("cpu"), "group": mesh.get_group("pp")}
        pipeline = [PipelineStage(module, i, **place) for module, i in zip(wrapped, mine, strict=True)]
        inputs, targets = ([x[replica]], {}) if position == 0 else ([], {"target": y[replica]})
        schedule(pipeline, MICRO_BATCHES, loss_fn=F.mse_loss).step(*inputs, **targets)
        pairs = [pair for i in mine for pair in zip(stages[i].parameters(), control[i].parameters(), strict=True)]
        reduced[which, rank] = sum((p.grad - q.grad).norm() < 1e-3 * q.grad.norm() for p, q in pairs)
    dist.destroy_process_group()


if __name__ == "__main__":
    reduced = torch.zeros(2, 4, dtype=torch.int64).share_memory_()  # gradients that equal the control's
    with tempfile.TemporaryDirectory() as store:
        mp.start_processes(rank_main, (store, reduced), nprocs=4, start_method="fork")
    (control, found), every = reduced.sum(1).tolist(), 4 * 2 * 4  # ranks, stages of a rank, parameters of a stage
    print(f"expected {every} of {every} gradients are the mean over the replicas (1F1B: {control})")
    print(f"found    {found} of {every} under ScheduleInterleavedZeroBubble")
    if control != every:
        raise RuntimeError("the control, interleaved 1F1B, is wrong too")
    wrong = found != every
    print("still there" if wrong else "gone")
    sys.exit(wrong)
