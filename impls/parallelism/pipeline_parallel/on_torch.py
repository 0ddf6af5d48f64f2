"""torch.distributed.pipelining: its schedules on its PipelineStages."""

import torch
import torch.distributed as dist
from torch.distributed.pipelining import schedules

from harness.spec import Topology, Unsupported, Workload
from impls.engines.torch.pipeline import Pipelining
from impls.parallelism.pipeline_parallel.schedules import plan_of

SCHEDULES = {
    "gpipe": schedules.ScheduleGPipe,
    "1f1b": schedules.Schedule1F1B,
    "interleaved": schedules.ScheduleInterleaved1F1B,
    "looped_bfs": schedules.ScheduleLoopedBFS,
    "interleaved_zb": schedules.ScheduleInterleavedZeroBubble,
    "zb_v": schedules.ScheduleZBVZeroBubble,
    "dual_pipe_v": schedules.ScheduleDualPipeV,
}
V_SHAPED = ("zb_v", "dual_pipe_v")  # one rank has two stages that follow each other


def build(workload: Workload, topology: Topology, schedule: str, chunks: int = 2) -> Pipelining:
    if torch.__version__ < (2, 12) and schedule in V_SHAPED and dist.get_backend() == "gloo":
        raise Unsupported("before PyTorch 2.12 a stage sends to its own rank's next one, and gloo has no such way")
    plan = plan_of(workload, topology, schedule, chunks)
    return Pipelining(workload, topology, SCHEDULES[schedule], plan.rank_of)
