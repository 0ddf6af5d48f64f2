"""The promises of data parallelism, and those of ZeRO-3 where the weights are sharded."""

from harness.spec import Topology, Workload
from impls.parallelism.data_parallel import laws
from impls.parallelism.zero import laws as zero


def states(workload: Workload, topology: Topology, sharded: bool = False, **variant: object) -> float:
    return zero.states(workload, topology) if sharded else laws.states(workload, topology)


def traffic(workload: Workload, topology: Topology, sharded: bool = False, **variant: object) -> float | None:
    return zero.traffic(workload, topology) if sharded else laws.traffic(workload, topology)
