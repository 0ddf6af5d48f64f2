"""torch.distributed.pipelining: its schedules on its PipelineStages. What it leaves to its user, the reference's
:class:`Part` does: sums of a tied embedding's gradients, clipping, the optimizer."""

from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, schedules

from harness.spec import Batch, Spans, Topology, Unsupported, Workload
from impls.common.mesh import device
from impls.parallelism.pipeline_parallel.part import Part
from impls.parallelism.pipeline_parallel.plan import Action, Plan
from impls.parallelism.pipeline_parallel.schedules import plan_of
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


class Pipelining:
    def __init__(self, workload: Workload, topology: Topology, plan: Plan, schedule: str) -> None:
        self.part = mine = Part(workload, topology, plan)
        self.spans: Spans | None = None
        self.update, self.gradients, self.parameters = mine.update, mine.gradients, mine.parameters
        parts = [
            PipelineStage(module, index, plan.stages, device(), group=mine.pp) for index, module in mine.stages.items()
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

    def record(self, spans: Spans | None) -> None:
        self.spans = spans

    def backward(self, batch: Batch) -> Tensor:
        micro_batches, weights = self.part.share(batch)
        inputs, labels = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
        self.scale = sum(weights) / int((labels >= 0).sum())
        losses: list[Tensor] = []
        first, last = (any(getattr(stage, name) for stage in self.part.stages.values()) for name in ("first", "last"))
        self.schedule.step(*([inputs] if first else []), target=labels if last else None, losses=losses)
        total = torch.zeros((), device=device(), dtype=torch.float64)
        return self.part.combine(sum((loss.detach() for loss in losses), total))


def build(workload: Workload, topology: Topology, schedule: str, chunks: int = 2) -> Pipelining:
    if torch.__version__ < (2, 12) and schedule in V_SHAPED and dist.get_backend() == "gloo":
        raise Unsupported("before PyTorch 2.12 a stage sends to its own rank's next one, and gloo has no such way")
    return Pipelining(workload, topology, plan_of(workload, topology, schedule, chunks), schedule)
