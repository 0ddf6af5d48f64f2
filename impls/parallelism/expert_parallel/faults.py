"""Expert parallelism with exactly one thing broken."""

from typing import Any

from torch import Tensor

from harness.spec import Function, Topology, Workload
from harness.spec.fault import GRADIENT, OUTPUT, Fault
from impls.parallelism.expert_parallel import reference
from impls.parallelism.expert_parallel.router import Rule


def no_sum_over_replicas(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Each copy of an expert keeps the gradient of the tokens that came to it alone."""
    layer = reference.build(workload, topology, **variant)
    layer.spread.replicas = layer.spread.ep  # without expert parallelism that is this rank
    return layer


def rows_sent_in_float32(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Tokens are widened before they go to their experts, not where they arrive."""
    dispatch = reference.dispatch
    reference.dispatch = lambda x, way: dispatch(x.float(), way).to(x.dtype)
    return reference.build(workload, topology, **variant)


def gates_that_do_not_add_up(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The gates of a token's experts are not divided by their sum."""
    choose = reference.choose

    def undivided(logits: Tensor, bias: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
        scores, experts, _ = choose(logits, bias, rule)
        return scores, experts, scores.gather(1, experts)

    reference.choose = undivided
    return reference.build(workload, topology, **variant)


def a_capacity_rounded_down(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """An expert accepts one token fewer."""
    slots = Rule.slots
    Rule.slots = lambda rule, tokens: slots(rule, tokens) - 1
    return reference.build(workload, topology, **variant)


FAULTS = {
    "gates_that_do_not_add_up": Fault(
        "st_moe", "dp1", {"parity": {"fp32": OUTPUT | GRADIENT, "bf16": OUTPUT}}, where="output of "
    ),
    "a_capacity_rounded_down": Fault("gshard", "dp1", {"parity": {"fp32": OUTPUT}}, where="output of "),
    "no_sum_over_replicas": Fault(
        "st_moe", "dp2", {"parity": {"fp32": GRADIENT, "bf16": GRADIENT}}, where="gradient of "
    ),
    "rows_sent_in_float32": Fault("st_moe", "dp2ep2", {"traffic": {"bf16": {"bytes"}}}),
}
