"""Megatron-Core's schedules: 1F1B, and interleaved 1F1B on several model chunks a rank."""

from megatron.core.pipeline_parallel import schedules

from harness.spec import Spans, Topology, Workload
from impls.common.watch import in_order, watched
from impls.engines.megatron.gpt import Gpt
from impls.parallelism.pipeline_parallel.plan import Plan
from impls.parallelism.pipeline_parallel.schedules import plan_of


class Pipeline(Gpt):
    """``batched``: each exchange as one batch of sends and receives (``batch_p2p_comm``)."""

    def __init__(self, workload: Workload, topology: Topology, plan: Plan, batched: bool) -> None:
        chunks = plan.stages // topology.pp
        super().__init__(workload, topology, chunks=chunks, batch_p2p_comm=batched, deallocate_pipeline_outputs=True)
        self.spans: Spans | None = None
        mine = plan.actions[self.pp.rank()]
        for name, kind in {"forward_step": "F", "backward_step": "B"}.items():
            setattr(schedules, name, watched(self, getattr(schedules, name), in_order(mine, kind)))

    def record(self, spans: Spans | None) -> None:
        self.spans = spans


def build(workload: Workload, topology: Topology, schedule: str, chunks: int = 2, batched: bool = False) -> Pipeline:
    return Pipeline(workload, topology, plan_of(workload, topology, schedule, chunks), batched)


def build_batched(workload: Workload, topology: Topology, schedule: str, chunks: int = 2) -> Pipeline:
    """With ``batch_p2p_comm``, the configuration's default."""
    return build(workload, topology, schedule, chunks, batched=True)
