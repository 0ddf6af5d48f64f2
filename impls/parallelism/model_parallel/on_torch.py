"""torch.distributed.pipelining with one micro-batch."""

from torch.distributed.pipelining import ScheduleGPipe

from harness.spec import Topology, Unsupported, Workload
from impls.engines.torch.pipeline import Pipelining


def build(workload: Workload, topology: Topology) -> Pipelining:
    if workload.micro_batches > 1:
        raise Unsupported("with several micro-batches its schedules are pipelines: see the topic pipeline_parallel")
    return Pipelining(workload, topology, ScheduleGPipe, range(topology.pp))
