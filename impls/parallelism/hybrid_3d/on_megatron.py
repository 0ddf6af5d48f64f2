"""Megatron-Core's own GPTModel on all its axes: tensor, pipeline (1F1B) and data parallelism, sequence parallelism, and
the distributed optimizer."""

from harness.spec import Topology, Unsupported, Workload
from impls.parallelism.sequence_parallel import on_megatron as with_sequence_parallelism
from impls.parallelism.tensor_parallel.on_megatron import TensorParallel


def build(
    workload: Workload, topology: Topology, sequence_parallel: bool = False, partition: bool = False
) -> TensorParallel:
    if workload.model.num_hidden_layers % topology.pp:
        raise Unsupported(
            f"Megatron-Core's stages have as many layers each: {topology.pp} does not divide "
            f"{workload.model.num_hidden_layers}"
        )
    if sequence_parallel:
        return with_sequence_parallelism.build(workload, topology, shard_states=partition)
    return TensorParallel(workload, topology, shard_states=partition, deallocate_pipeline_outputs=True)
