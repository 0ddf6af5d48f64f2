"""torch.distributed.pipelining: its schedules on its PipelineStages. What it leaves to its user, the reference does:
sums of a tied embedding's gradients, clipping, the optimizer."""

from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, schedules

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.mesh import device
from impls.parallelism.pipeline_parallel.places import plan_of
from impls.parallelism.pipeline_parallel.reference import Pipeline
from impls.parallelism.pipeline_parallel.schedules import Action, Plan
from impls.parallelism.pipeline_parallel.watch import watched

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


class Pipelining(Pipeline):
    defers = False  # the engine does, by means of its own

    def __init__(self, workload: Workload, topology: Topology, plan: Plan, schedule: str) -> None:
        super().__init__(workload, topology, plan)
        parts = [
            PipelineStage(module, index, plan.stages, device(), group=self.pp) for index, module in self.stages.items()
        ]
        for part in parts:
            self._record(part)
        kind = SCHEDULES[schedule]
        whole = parts if issubclass(kind, schedules.PipelineScheduleMulti) else parts[0]
        self.scale = 0.0  # 1 / the tokens with a label
        self.schedule = kind(whole, workload.micro_batches, self._loss, scale_grads=False)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") * self.scale

    def _record(self, part: PipelineStage) -> None:
        kinds = {"forward_one_chunk": "F", "backward_one_chunk": "B", "backward_weight_one_chunk": "W"}
        for name, kind in kinds.items():
            action = partial(Action, kind, part.stage_index)  # of the micro-batch, the function's first argument
            setattr(part, name, watched(self, getattr(part, name), lambda micro, *_, action=action: action(micro)))

    def run(self, micro_batches: list[Batch], weights: list[float]) -> Tensor:
        inputs, labels = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
        self.scale = sum(weights) / int((labels >= 0).sum())
        losses: list[Tensor] = []
        first, last = (any(getattr(stage, name) for stage in self.stages.values()) for name in ("first", "last"))
        self.schedule.step(*([inputs] if first else []), target=labels if last else None, losses=losses)
        return (
            torch.stack(losses).detach().double().sum()
            if losses
            else torch.zeros((), device=device(), dtype=torch.float64)
        )


def build(workload: Workload, topology: Topology, schedule: str, chunks: int = 2) -> Pipelining:
    if torch.__version__ < (2, 12) and schedule in V_SHAPED and dist.get_backend() == "gloo":
        raise Unsupported("before PyTorch 2.12 a stage sends to its own rank's next one, and gloo has no such way")
    return Pipelining(workload, topology, plan_of(workload, topology, schedule, chunks), schedule)
