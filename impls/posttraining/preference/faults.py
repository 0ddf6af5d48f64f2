"""Direct preference optimization with exactly one thing broken."""

from collections.abc import Mapping

import torch
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


def prompts_that_count(workload: Workload, topology: Topology, beta: float) -> Function:
    """The log-probabilities of the prompt's tokens are added as well."""
    loss = reference.build(workload, topology, beta)
    return lambda inputs: loss({**inputs, "completion_mask": inputs["attention_mask"]})


def means_of_tokens(workload: Workload, topology: Topology, beta: float) -> Function:
    """log π(y|x) is divided by the length of y."""
    dpo, lengths = reference.dpo, []

    def by_length(log_probs: Tensor, reference_log_probs: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        return dpo(log_probs / lengths[-1], reference_log_probs / lengths[-1], beta)

    reference.dpo = by_length
    loss = reference.build(workload, topology, beta)

    def measured(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        lengths.append(inputs["completion_mask"].sum(-1))
        return loss(inputs)

    return measured


def no_reference_model(workload: Workload, topology: Topology, beta: float) -> Function:
    """The reference model's log-probabilities are left out."""
    dpo = reference.dpo
    reference.dpo = lambda log_probs, _, beta: dpo(log_probs, torch.zeros_like(log_probs), beta)
    return reference.build(workload, topology, beta)


FAULTS = {
    "prompts_that_count": Fault("dpo", "dp1", {"parity": {"fp32": OUTPUT | GRADIENT}}, where="output of "),
    "means_of_tokens": Fault("dpo", "dp1", {"parity": {"fp32": OUTPUT | GRADIENT}}, where="output of "),
    "no_reference_model": Fault("dpo", "dp1", {"parity": {"fp32": OUTPUT | GRADIENT}}, where="output of "),
    "wrong_sign": Fault(
        "dpo", "dp1", {"parity": {"fp32": OUTPUT | GRADIENT, "bf16": OUTPUT | GRADIENT}}, where="output of loss"
    ),
}
