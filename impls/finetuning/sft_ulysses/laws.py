"""The promises of Ulysses in training: nothing is sharded but activations, and what a step sends."""

from harness.spec import Topology, Workload
from impls.parallelism.context_parallel import laws as exchange
from impls.parallelism.data_parallel import laws as data_parallel


def states(workload: Workload, topology: Topology, **variant: object) -> float:
    return data_parallel.states(workload, topology)


def traffic(workload: Workload, topology: Topology, **variant: object) -> float:
    """Bytes that a rank sends in a step of full rows: the exchanges of each layer, and one ring all-reduce of Ψ
    elements over all ranks."""
    ranks, cut = topology.world_size, Topology(cp=topology.cp)
    mine = workload.with_(batch_size=workload.batch_size // topology.dp)  # in all micro-batches
    layers = (exchange.traffic(mine, cut, group=0) or 0.0) * workload.model.num_hidden_layers
    return layers + 2 * (ranks - 1) / ranks * workload.model.parameters * workload.element_size
