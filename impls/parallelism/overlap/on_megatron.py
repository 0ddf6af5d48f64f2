"""Megatron-Core's ``tp_comm_overlap``, the tiled products of Transformer Engine."""

import megatron.core  # noqa: F401  the version that was tried

from harness.spec import Topology, Unsupported, Workload


def build(workload: Workload, topology: Topology, technique: str) -> None:
    # Tried with 0.16.1: local layers also accept the flag, but a step's collectives remain the same, one by one.
    raise Unsupported(
        "only Megatron-Core's Transformer Engine layers use tp_comm_overlap, and their user buffers need CUDA and "
        "NVLink; the local layers, which run on a CPU, accept the flag and ignore it without a warning"
    )
