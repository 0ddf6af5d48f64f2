"""Direct preference optimization with exactly one thing broken."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from harness.spec import Function, Topology, Workload
from harness.spec.fault import GRADIENT, OUTPUT, Fault
from impls.posttraining.preference import reference


def wrong_sign(workload: Workload, topology: Topology, beta: float) -> Function:
    """The loss prefers what was rejected; the rewards are right."""

    def dpo(log_probs: Tensor, reference_log_probs: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        chosen, rejected = (beta * (log_probs - reference_log_probs)).chunk(2)
        return -logsigmoid(rejected - chosen).mean(), chosen, rejected

    reference.dpo = dpo
    return reference.build(workload, topology, beta)


FAULTS = {
    "wrong_sign": Fault(
        "dpo", "dp1", {"parity": {"fp32": OUTPUT | GRADIENT, "bf16": OUTPUT | GRADIENT}}, where="output of loss"
    ),
}
