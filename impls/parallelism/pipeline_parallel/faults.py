"""Pipeline parallelism with exactly one thing broken."""

from typing import Any

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, REPLAYED, TRAINED, Fault
from harness.spec.named import NAMED
from impls.common.optimizer import square
from impls.parallelism.pipeline_parallel import part, reference
from impls.parallelism.pipeline_parallel.grid import THOROUGH
from impls.parallelism.pipeline_parallel.plan import Action, Plan, one_by_one
from impls.parallelism.pipeline_parallel.schedules import SCHEDULES


def a_tie_that_is_not_summed(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each end of the pipeline keeps its own gradient of the tied embedding."""
    trainer = reference.build(workload, topology, **variant)
    trainer.part.shared = {}
    return trainer


def no_stashed_weights(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Updates are made in place: a backward pass finds the newest weights, not those of its forward pass."""
    trainer = reference.build(workload, topology, **variant)
    for versions in trainer.versions.values():
        versions.room = lambda versions=versions: versions.held[versions.newest]
    return trainer


def backward_passes_last(workload: Workload, topology: Topology, schedule: str) -> Trainer:
    """GPipe's order under 1F1B's name: as short, but all micro-batches are in flight."""
    return reference.build(workload, topology, "gpipe")


def one_micro_batch_at_a_time(workload: Workload, topology: Topology, schedule: str) -> Trainer:
    """A micro-batch comes back before the next one starts: ranks take turns, and half of their time they idle."""

    def in_turn(p: int, m: int) -> Plan:
        return one_by_one([[Action(kind, r, i) for i in range(m) for kind in "FB"] for r in range(p)], tuple(range(p)))

    SCHEDULES[schedule] = in_turn
    return reference.build(workload, topology, schedule)


def clipped_by_its_own_stage(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each stage clips by the norm of its own gradients."""
    part.global_norm = lambda gradients: square([g for mine in gradients.values() for g in mine]).sqrt()
    return reference.build(workload, topology, **variant)


FAULTS = {
    "clipped_by_its_own_stage": Fault(
        "1f1b",
        "pp2",
        {"parity": {"fp32": REPLAYED}},
        workload=THOROUGH,
    ),
    "a_tie_that_is_not_summed": Fault(
        "1f1b",
        "pp2",
        {"parity": {"fp32": GRADIENT | TRAINED, "bf16": {"gradient"}}},
        where="step 1, gradient of model.embed_tokens.weight",
        workload="pipelined_tied",
    ),
    "no_stashed_weights": Fault(
        "pipedream",
        "pp2",
        # No error of scale: what slopes see in bfloat16 depends on the CPU.
        {"parity": {"fp32": GRADIENT | TRAINED, "bf16": {"gradient", "update"}}},
        where="step 1, gradient of model.",
        workload=NAMED["pipelined"].with_(lr=0.4),  # weights move so far that it matters which ones are taken
    ),
    "backward_passes_last": Fault("1f1b", "pp2", {"timeline": {"fp32": {"in_flight"}}}, workload="pipelined"),
    "one_micro_batch_at_a_time": Fault("1f1b", "pp2", {"timeline": {"fp32": {"bubble"}}}, workload="pipelined"),
}
