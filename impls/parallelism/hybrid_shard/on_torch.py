"""FSDP2's ``fully_shard`` on a mesh (replicate, shard); MiCS is its ``set_requires_all_reduce``."""

import contextlib
from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor

from harness.spec import Batch, Topology, Workload
from impls.common.step import accumulate
from impls.engines.torch.fsdp import Sharded
from impls.parallelism.hybrid_shard.reference import places_of


class HybridShard(Sharded):
    def __init__(self, workload: Workload, topology: Topology, group: int, two_hop: bool) -> None:
        super().__init__(workload, topology, reshard=True, shards=places_of(topology, group))
        self.two_hop = two_hop

    def backward(self, batch: Batch) -> Tensor:
        return accumulate(self.model, batch, self.workload, dist.get_rank(), self.topology.dp, around=self._around)

    @contextlib.contextmanager
    def _around(self, last: bool) -> Iterator[None]:
        self.model.set_requires_all_reduce(last or not self.two_hop)
        yield


def build(workload: Workload, topology: Topology, group: int, two_hop: bool = False) -> HybridShard:
    return HybridShard(workload, topology, group, two_hop)
