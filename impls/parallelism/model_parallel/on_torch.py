"""torch.distributed.pipelining with one micro-batch."""

from harness.spec import Topology, Unsupported, Workload
from impls.parallelism.pipeline_parallel import on_torch


def build(workload: Workload, topology: Topology) -> on_torch.Pipelining:
    if workload.micro_batches > 1:
        raise Unsupported("with several micro-batches its schedules are pipelines: see the topic pipeline_parallel")
    return on_torch.build(workload, topology, "gpipe")
