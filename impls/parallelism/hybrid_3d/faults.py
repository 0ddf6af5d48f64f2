"""Hybrid parallelism with exactly one thing broken."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, LATER_GRADIENT, REPLICAS, TRAINED, Fault
from impls.common.routers import routers
from impls.parallelism.hybrid_3d import reference
from impls.parallelism.hybrid_3d.grid import DEEP


def gains_of_one_part(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The gain of the keys' norm keeps the gradient of this rank's heads."""
    trainer = reference.build(workload, topology, **variant)
    trainer.summed = ("q_norm.weight",)
    return trainer


def experts_that_count_their_ranks(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """An expert's gradient is of all tokens of its group, but is averaged as a dense weight's, which is one rank's."""
    trainer = reference.build(workload, topology, **variant)
    for kind, states in trainer.states.of.items():
        states.ranks = kind.replicas.size()
    return trainer


def positions_of_the_first_rank(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each rank takes its part of a sequence for its beginning."""
    trainer = reference.build(workload, topology, **variant)
    for stage in trainer.stages.values():
        stage.positions = None
    return trainer


def states_of_every_replica(workload: Workload, topology: Topology, partition: bool) -> Trainer:
    """Each replica keeps all of the optimizer's states, where ZeRO-1 divides them."""
    return reference.build(workload, topology, partition=False)


def z_loss_divided_by_tp_twice(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Every tensor-parallel rank has the z loss of all tokens, of which it counts a part of its part."""
    trainer = reference.build(workload, topology, **variant)
    less = replace(workload.model, router_z_loss_coef=workload.model.router_z_loss_coef / topology.tp)
    for router in routers(*trainer.stages.values()):
        router.config = less
    return trainer


def balance_of_local_tokens(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The share of an expert is that of this rank's part of the sequences."""
    trainer = reference.build(workload, topology, **variant)
    for router in routers(*trainer.stages.values()):
        router.add = lambda counts: counts
    return trainer


def balance_of_one_replica(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A balance of the whole batch counts the choices of this rank's sequences alone."""
    return balance_of_local_tokens(workload, topology, **variant)


def weights_after_the_reduction(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Replicas add up the gradients that B leaves, but not those that W computes of the last stage's layers."""
    trainer = reference.build(workload, topology, **variant)
    (*_, last) = trainer.stages.values()
    late = [module.weight for module in last.model.layers.modules() if isinstance(module, nn.Linear)]
    reduce = trainer.states.reduce

    def reduce_the_others() -> None:
        own = [weight.grad.clone() for weight in late]
        reduce()
        torch._foreach_copy_([weight.grad for weight in late], own)

    trainer.states.reduce = reduce_the_others
    return trainer


FAULTS = {
    "gains_of_one_part": Fault(
        "mesh_zero1",
        "tp2pp2",
        {"parity": {"fp32": GRADIENT, "bf16": {"gradient"}}},
        where="_norm.weight",
        workload="meshed",
    ),
    "experts_that_count_their_ranks": Fault(
        "mesh",
        "dp2ep2",
        {"parity": {"fp32": GRADIENT | {"update slope"}}},  # in low precision rounding sends tokens to other experts
        where="step 1, gradient of model.layers.",
        workload="meshed_experts",
    ),
    "positions_of_the_first_rank": Fault(
        "mesh",
        "cp2",
        {"parity": {"fp32": GRADIENT | TRAINED, "bf16": GRADIENT}},
        where="step 1, gradient of model.layers.",
        workload="meshed",
    ),
    "z_loss_divided_by_tp_twice": Fault(
        "mesh_sp",
        "tp2",
        {"parity": {"fp32": GRADIENT}},
        where="step 1, gradient of model.layers.",
        workload="meshed_routed",
    ),
    "balance_of_local_tokens": Fault(
        "mesh",
        "cp2",
        {"parity": {"fp32": GRADIENT}},
        where="step 1, gradient of model.layers.",
        workload="meshed_routed",
    ),
    "balance_of_one_replica": Fault(
        "mesh",
        "dp2",
        {"parity": {"fp32": GRADIENT}},
        where="step 1, gradient of model.layers.",
        workload="meshed_global",
    ),
    "weights_after_the_reduction": Fault(
        "mesh_zero_bubble",
        "dp2pp2",
        {"parity": {"fp32": GRADIENT | LATER_GRADIENT | TRAINED | REPLICAS, "bf16": {"gradient"} | REPLICAS}},
        where="step 1, gradient of model.layers.",
        workload=DEEP,
    ),
    "states_of_every_replica": Fault("mesh_zero1", "dp2pp2", {"memory": {"fp32": {"states"}}}, workload="meshed"),
}
