"""Hybrid sharding: ZeRO inside groups of F ranks, data parallelism across the W/F groups.

Zhao et al. 2023, "PyTorch FSDP", §3.2.2 (HSDP); Zhang et al. 2022, "MiCS", §3 (partition and replication groups).

Sharding over all W ranks sends every weight over the slowest link. In groups of F, such as the GPUs of one node,
weights are gathered only inside the group, and only each rank's shard of the gradient crosses groups. The sum is the
same (Zhao et al., equation 1):

    Σ_{r=1}^{W} g_r  =  Σ_{i=1}^{W/F} Σ_{r ∈ S_i} g_r

            ┌───────── R_1 ─────────┐                  weights, as in ZeRO:  all-gather in S_i
          rank 0      rank 1      rank 2      rank 3   gradients, hop 1:     reduce-scatter in S_i
        [shard 0]   [shard 1]   [shard 0]   [shard 1]             hop 2:     all-reduce in R_j
                        └───────── R_2 ─────────┘
         ────── S_1 ──────       ────── S_2 ──────                           W = 4, F = 2

    W  ranks   F  ranks in a group   S_i  sharding group i, neighbours   R_j  replication group j: has shard j
    g_r  [Ψ], the gradient of rank r's share of the batch                Ψ  parameters

The second hop may wait over the micro-batches i = 1 … k of one batch, since sums commute (Zhang et al., "2-hop gradient
synchronisation"):

    hsdp    hop 1 · hop 2   hop 1 · hop 2   …   hop 1 · hop 2        across groups: k · 2(W/F−1)/(W/F) · Ψ/F elements
    mics    hop 1           hop 1           …   hop 1 · hop 2                           2(W/F−1)/(W/F) · Ψ/F

In stage 1 a group shares only the optimizer's states, and both hops happen once.
"""

from collections.abc import Callable
from functools import partial

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from harness.spec import Topology, Workload
from impls.common.flat import distinct
from impls.common.mesh import device, groups
from impls.common.weights import build_model
from impls.parallelism.zero.hooks import Unit, Zero3, modules
from impls.parallelism.zero.optimizer import Zero1, reduce_scatter
from impls.parallelism.zero.reference import Stage, Zero


def places_of(topology: Topology, group: int) -> DeviceMesh:
    """The ranks as a mesh (R, S) of W/F rows, the sharding groups, of F neighbours."""
    names = ("replicate", "shard")
    return init_device_mesh(device().type, (groups(topology, group), group), mesh_dim_names=names)


def both_hops(whole: Tensor, shard: dist.ProcessGroup, replicate: dist.ProcessGroup) -> Callable[[], Tensor]:
    """hsdp: a unit's gradient [Ψ_u] of one micro-batch → this rank's part [Ψ_u/F], summed over all ranks."""
    first = reduce_scatter(whole, shard)  # under way

    def wait() -> Tensor:
        part = first()  # [Ψ_u/F]
        dist.all_reduce(part, group=replicate)
        return part

    return wait


class SecondHopOnce:
    """mics, hsdp_zero1: the gradients of all micro-batches are added ``inside`` each group before they cross groups."""

    def __init__(self, inside: Stage, replicate: dist.ProcessGroup) -> None:
        self.inside, self.replicate = inside, replicate
        self.partitions, self.step = inside.partitions, inside.step

    def reduce(self) -> None:
        self.inside.reduce()
        for part in self.partitions:
            assert part.gradient is not None
            crossing = part.gradient.to(part.parameters[0].dtype)  # [Ψ_u/F], as narrow as the weights
            dist.all_reduce(crossing, group=self.replicate)
            part.gradient.copy_(crossing)


def build(workload: Workload, topology: Topology, group: int, stage: int = 3, two_hop: bool = False) -> Zero:
    places, model = places_of(topology, group), build_model(workload)
    shard, replicate = places.get_group("shard"), places.get_group("replicate")
    if stage == 1:
        zero1 = Zero1(distinct(model.parameters()), workload, shard)
        return Zero(model, SecondHopOnce(zero1, replicate), shard, workload)
    reduce = partial(reduce_scatter, group=shard) if two_hop else partial(both_hops, shard=shard, replicate=replicate)
    units = [Unit(parameters, shard) for _, parameters in modules(model)]
    zero3 = Zero3(model, units, workload, reduce)
    return Zero(model, SecondHopOnce(zero3, replicate) if two_hop else zero3, shard, workload)
