"""Expert parallelism with exactly one thing broken."""

from typing import Any

from harness.spec import Function, Topology, Workload
from harness.spec.fault import GRADIENT, Fault
from impls.parallelism.expert_parallel import reference


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


FAULTS = {
    "no_sum_over_replicas": Fault(
        "st_moe", "dp2", {"parity": {"fp32": GRADIENT, "bf16": GRADIENT}}, where="gradient of "
    ),
    "rows_sent_in_float32": Fault("st_moe", "dp2ep2", {"traffic": {"bf16": {"bytes"}}}),
}
