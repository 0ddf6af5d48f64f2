"""Megatron-Core's ``tp_comm_overlap``, the tiled products of Transformer Engine."""

import megatron.core  # noqa: F401  its version is the one that was tried

from harness.spec import Topology, Unsupported, Workload


def build(workload: Workload, topology: Topology, technique: str) -> None:
    # Tried with 0.16.1: local layers take the flag too, and a step's collectives are the same, one by one.
    raise Unsupported(
        "tp_comm_overlap is read by Megatron-Core's Transformer Engine layers alone, whose user buffers need CUDA and "
        "NVLink; the local layers, which run on a CPU, take the flag and ignore it without a word"
    )
