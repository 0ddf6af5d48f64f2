"""DeepSpeed's PipelineEngine over data-parallel pipelines, with its ZeRO stage 1."""

from harness.spec import Topology, Unsupported, Workload
from impls.parallelism.pipeline_parallel.on_deepspeed import Pipeline
from impls.parallelism.zero.on_deepspeed import section


def build(workload: Workload, topology: Topology, sequence_parallel: bool = False, partition: bool = False) -> Pipeline:
    if topology.tp > 1 or sequence_parallel:
        raise Unsupported(
            "DeepSpeed's PipelineModule has no tensor-parallel layers; they are Megatron-DeepSpeed's, whose repository "
            "cannot be installed"
        )
    if workload.dtype == "fp64":
        raise Unsupported("DeepSpeed's engine trains in float32, float16 and bfloat16 only")
    return Pipeline(workload, topology, section(workload, 1) if partition else {"stage": 0})
