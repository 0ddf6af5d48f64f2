"""Clipping gradients by their global norm (Pascanu et al. 2013, §3.2, algorithm 1), with parameters distributed over
ranks.

    ‖g‖ = √ Σ g_i²          i: every element of every distinct parameter, once
    g  ←  g · min(1, c/‖g‖)

No rank sees all of g. A parameter's squares are added only over the groups of ranks among which its elements are
divided: a replicated parameter is on every rank and would be counted several times.

                             rank 0            rank 1
    sharded over G      [ g_0  g_1 │    ]  [     │ g_2  g_3 ]      Σ over rank 0 and 1, one all-reduce of one number
    replicated          [ g_4  g_5      ]  [ g_4  g_5       ]      either rank's own

The naive sum over everything on all ranks is right only for ZeRO. The groups by kind of parallelism:

    data parallelism            ()     everything, once the gradients are averaged
    ZeRO, hybrid sharding       (F,)   every shard; F the group that divides the states, not its replicas
    tensor parallelism          (tp,)  matrices         ()  norms
    pipeline parallelism        (pp,)  a stage's own; a tied embedding lives on two stages and counts on one
    expert parallelism          (ep,)  experts          ()  router, attention, norms
    two at once, such as ZeRO and tensor parallelism: (F, tp) for a matrix's shards, (F,) for a norm's

    g  gradients, averaged over data-parallel ranks     c  max_grad_norm
"""

from harness.spec import Topology, Trainer, Workload
from impls.acceleration.gradient_clipping.layout import SCHEDULE, check, pipelined
from impls.parallelism.data_parallel.reference import Bucketed
from impls.parallelism.hybrid_3d import reference as hybrid
from impls.parallelism.pipeline_parallel import reference as pipeline
from impls.parallelism.tensor_parallel.reference import TensorParallel
from impls.parallelism.zero import reference as zero


def build(workload: Workload, topology: Topology, stage: int = 0) -> Trainer:
    """The reference of the topology's parallelism; all of them clip by ``impls.common.clipping``."""
    check(topology, stage)
    if topology.ep > 1:
        return hybrid.build(workload, topology)
    if topology.tp > 1:
        return TensorParallel(workload, topology)
    if topology.pp > 1:
        return pipeline.build(pipelined(workload, topology), topology, SCHEDULE)
    return zero.build(workload, topology, stage) if stage else Bucketed(workload)
