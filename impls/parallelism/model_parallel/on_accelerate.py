"""Accelerate's device map is for one process that sees several devices, which a rank here never does."""

from harness.spec import Topology, Trainer, Unsupported, Workload


def build(workload: Workload, topology: Topology) -> Trainer:
    raise Unsupported(
        "Accelerate's device map distributes the layers of one process over several devices; a case here has "
        f"{topology.world_size} processes with a device each"
    )
