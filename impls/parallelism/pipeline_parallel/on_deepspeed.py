"""DeepSpeed's PipelineModule and PipelineEngine, which runs 1F1B."""

from harness.spec import Topology, Workload
from impls.engines.deepspeed.pipeline import Pipeline


def build(workload: Workload, topology: Topology, schedule: str) -> Pipeline:
    return Pipeline(workload, topology, {"stage": 0})
