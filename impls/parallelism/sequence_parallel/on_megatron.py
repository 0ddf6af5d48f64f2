"""Megatron-Core's own GPTModel with ``sequence_parallel``; everything else is as in tensor parallelism."""

from harness.spec import Topology, Unsupported, Workload
from impls.engines.megatron.gpt import Gpt
from impls.engines.megatron.sequence_parallel import with_sequence_parallel


def build(workload: Workload, topology: Topology, gather_again: bool = True) -> Gpt:
    if not gather_again:
        raise Unsupported("Megatron-Core saves its part of a product's input and always gathers it again")
    return with_sequence_parallel(workload, topology)
