"""The promises of plain data parallelism; those of sharded weights belong to the topic ZeRO."""

from harness.spec import Topology, Workload
from impls.parallelism.data_parallel import laws


def states(workload: Workload, topology: Topology, sharded: bool = False, **variant: object) -> float | None:
    return None if sharded else laws.states(workload, topology)


def traffic(workload: Workload, topology: Topology, sharded: bool = False, **variant: object) -> float | None:
    return None if sharded else laws.traffic(workload, topology)
