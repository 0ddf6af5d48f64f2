"""Tensor parallelism with exactly one thing broken."""

from math import log

import torch
import torch.nn.functional as F

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, LATER_GRADIENT, LOSS, UPDATE, Fault
from impls.parallelism.tensor_parallel import around, operators, reference


def no_sum_over_heads(workload: Workload, topology: Topology) -> Trainer:
    """The gains of the query and key norms see this rank's heads only: an all-reduce is missing."""
    reference.sum_flat = lambda tensors, group: None
    return reference.build(workload, topology)


def blocks_summed_in_float32(workload: Workload, topology: Topology) -> Trainer:
    """What the blocks of all ranks add up to is widened before it is sent, not after it: twice the bytes."""
    reduce = reference.reduce
    reference.reduce = lambda partial, group: reduce(partial.float(), group).to(partial.dtype)
    return reference.build(workload, topology)


def no_sum_of_input_gradients(workload: Workload, topology: Topology) -> Trainer:
    """A column-parallel layer passes on the gradient of its own columns alone."""
    reference.column_parallel = lambda x, group, *weights: tuple(F.linear(x, weight) for weight in weights)
    return reference.build(workload, topology)


def positions_in_bfloat16(workload: Workload, topology: Topology) -> Trainer:
    """Positions are rounded to bfloat16, which has no odd numbers above 256."""
    table = reference.rope_table
    reference.rope_table = lambda s, config, device, _: table(s, config, device, torch.arange(s).bfloat16().float())
    return reference.build(workload, topology)


def a_mean_over_all_positions(workload: Workload, topology: Topology) -> Trainer:
    """The sum of the losses is divided by the number of positions, not by that of labels."""
    reference.mean = lambda losses, labels: losses.masked_fill(labels < 0, 0.0).mean()
    return reference.build(workload, topology)


def whole_logits_as_a_part(workload: Workload, topology: Topology, validated: bool) -> Trainer:
    """In validation each rank takes the whole logits for its part: every exponential is summed once per rank."""
    plain = around.cross_entropy
    around.cross_entropy = lambda logits, labels: plain(logits, labels) + log(topology.tp)
    return reference.build(workload, topology, validated=validated)


def strided_gradients_unsummed(workload: Workload, topology: Topology, own_head: bool) -> Trainer:
    """What is summed is a copy of a strided tensor, and the tensor itself is returned."""
    summed = operators._sum
    operators._sum = lambda x, group: summed(x, group) if x.is_contiguous() else x
    return reference.build(workload, topology, own_head=own_head)


FAULTS = {
    "no_sum_of_input_gradients": Fault(
        "tp",
        "tp2",
        {"parity": {"fp32": GRADIENT, "bf16": {"gradient"}}},
        where="step 1, gradient of ",
        workload="thorough",
    ),
    "positions_in_bfloat16": Fault(
        "tp", "tp2", {"parity": {"fp32": {"gradient"}}}, where="step 1, gradient of ", workload="distant"
    ),
    "a_mean_over_all_positions": Fault(
        "tp", "tp2", {"parity": {"fp32": GRADIENT, "bf16": GRADIENT}}, where="step 1, gradient of ", workload="thorough"
    ),
    "no_sum_over_heads": Fault(
        "tp",
        "tp2",
        {"parity": {"fp32": GRADIENT | UPDATE, "bf16": {"gradient"}}},
        where="_norm.weight",
    ),
    "whole_logits_as_a_part": Fault(
        "tp_validated",
        "tp2",
        {"parity": {"fp32": LOSS, "bf16": LOSS}},
        where="step 1, loss ",
        workload="thorough",
    ),
    "strided_gradients_unsummed": Fault(
        "tp_own_head",
        "tp2",
        {"parity": {"fp32": GRADIENT | LATER_GRADIENT | UPDATE, "bf16": {"gradient"}}},
        where="step 1, gradient of ",
        workload="thorough",
    ),
    "blocks_summed_in_float32": Fault("tp", "tp2", {"traffic": {"bf16": {"bytes"}}}),
}
