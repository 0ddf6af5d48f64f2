"""Hybrid sharding: ZeRO inside groups of F ranks, data parallelism across the W/F groups.

Zhao et al. 2023, "PyTorch FSDP", §3.2.2 (HSDP); Zhang et al. 2022, "MiCS", §3 (partition and replication groups).

Sharding over all W ranks sends every weight over the slowest link. In groups of F, say the GPUs of one node, weights
are gathered inside the group only, and what crosses is each rank's shard of the gradient. That is the same sum
(Zhao et al., equation 1):

    Σ_{r=1}^{W} g_r  =  Σ_{i=1}^{W/F} Σ_{r ∈ S_i} g_r

            ┌───────── R_1 ─────────┐                  weights, as in ZeRO:  all-gather in S_i
          rank 0      rank 1      rank 2      rank 3   gradients, hop 1:     reduce-scatter in S_i
        [shard 0]   [shard 1]   [shard 0]   [shard 1]             hop 2:     all-reduce in R_j
                        └───────── R_2 ─────────┘
         ────── S_1 ──────       ────── S_2 ──────                           W = 4, F = 2

    W  ranks   F  ranks in a group   S_i  sharding group i, neighbours   R_j  replication group j: who holds shard j
    g_r  [Ψ], the gradient of rank r's share of the batch                Ψ  parameters

Over the micro-batches i = 1 … k of one batch the second hop may wait, for sums commute (Zhang et al., "2-hop gradient
synchronisation"):

    hsdp    hop 1 · hop 2   hop 1 · hop 2   …   hop 1 · hop 2        across groups: k · 2(W/F−1)/(W/F) · Ψ/F elements
    mics    hop 1           hop 1           …   hop 1 · hop 2                           2(W/F−1)/(W/F) · Ψ/F

In stage 1 a group shares the optimizer's states alone, and both hops are taken once.
"""

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from harness.spec import Batch, Topology, Workload
from impls.common.mesh import device, groups
from impls.parallelism.zero.reference import Zero
from impls.parallelism.zero.unit import Unit

Crossing = tuple[dist.Work, Unit, Tensor]


def places_of(topology: Topology, group: int) -> DeviceMesh:
    """The ranks as a mesh (R, S) of W/F rows, the sharding groups, of F neighbours."""
    names = ("replicate", "shard")
    return init_device_mesh(device().type, (groups(topology, group), group), mesh_dim_names=names)


class HybridShard(Zero):
    """ZeRO in this rank's sharding group; of each part of a gradient that arrives there, the sum over the groups."""

    def __init__(self, workload: Workload, places: DeviceMesh, stage: int, two_hop: bool) -> None:
        super().__init__(workload, stage, places.get_group("shard"))
        self.replicas, self.two_hop = places.get_group("replicate"), two_hop
        self.crossing: Crossing | None = None
        self.waiting: dict[Unit, Tensor] = {}

    def backward(self, batch: Batch) -> Tensor:
        loss = super().backward(batch)
        self._arrive()
        return loss

    def _received(self, unit: Unit, part: Tensor) -> None:
        """After hop 1: hop 2, or with ``two_hop`` the sum over micro-batches until the last has come."""
        if self.two_hop:
            if unit in self.waiting:
                part += self.waiting.pop(unit)
            if not self.last:
                self.waiting[unit] = part  # no wider than what will cross
                return
        self._arrive()  # the one before: a single all-reduce at a time
        if self.replicas.size() > 1:
            self.crossing = dist.all_reduce(part, group=self.replicas, async_op=True), unit, part
        else:
            unit.add(part)

    def _arrive(self) -> None:
        """Takes the result of the running all-reduce across groups."""
        if self.crossing is not None:
            work, unit, part = self.crossing
            work.wait()
            unit.add(part)
            self.crossing = None


def build(workload: Workload, topology: Topology, group: int, stage: int = 3, two_hop: bool = False) -> HybridShard:
    return HybridShard(workload, places_of(topology, group), stage, two_hop)
