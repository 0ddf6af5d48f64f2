"""Megatron-Core's own GPTModel (local layer specification: no Transformer Engine)."""

from harness.spec import Topology, Workload
from impls.engines.megatron.gpt import Gpt


def build(workload: Workload, topology: Topology) -> Gpt:
    return Gpt(workload, topology)
