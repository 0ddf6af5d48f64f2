"""Multi-token prediction with exactly one thing broken."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import Batch, Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, Fault
from impls.acceleration.multi_token_prediction import predictor, reference


def targets_shifted_by_one(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Depth k is trained on t_{i+k}, whose embedding it reads, in place of t_{i+k+1}."""
    honest = reference.shifted

    def shifted(batch: Batch, k: int) -> Batch:
        return Batch(honest(batch, k).inputs, honest(batch, max(k - 1, 0)).labels)

    reference.shifted = shifted
    return reference.build(workload, topology, **variant)


def targets_beyond_the_end(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Labels are rolled: the last k positions of a sequence are trained on its first labels."""
    reference.shifted = lambda batch, k: Batch(*(x.roll(-k, 1) for x in batch))
    return reference.build(workload, topology, **variant)


def depths_counted_on_their_own_rank(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """N_1 … N_D are this rank's tokens × ranks, as if all ranks had as many; N_0 is that of all."""
    honest = reference.total

    def total(counts: Tensor, group: dist.ProcessGroup) -> Tensor:
        return torch.cat((honest(counts, group)[:1], counts.sum(0)[1:] * group.size()))

    reference.total = total
    return reference.build(workload, topology, **variant)


def weight_of_every_depth(workload: Workload, topology: Topology, depth: int, weight: float, **variant: Any) -> Trainer:
    """λ is not divided by D."""
    return reference.build(workload, topology, depth=depth, weight=weight * depth, **variant)


def halves_swapped(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """M_k reads [RMSNorm(Emb); RMSNorm(h)], as engines do, with weights in the paper's order."""
    trainer = reference.build(workload, topology, **variant)
    for depth in trainer.model.mtp:
        depth.eh_proj.register_forward_pre_hook(lambda _, both: torch.cat(both[0].chunk(2, -1)[::-1], -1))
    return trainer


def every_depth_on_the_main_model(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each depth reads h^0: parallel heads in place of a chain."""
    trainer = reference.build(workload, topology, **variant)
    main: list[Tensor] = []

    def read(_: nn.Module, h: tuple[Tensor]) -> Tensor:
        main[:] = main or h
        return main[0]

    for depth in trainer.model.mtp:
        depth.hnorm.register_forward_pre_hook(read)
    trainer.model.register_forward_pre_hook(lambda *_: main.clear())
    return trainer


def embedding_detached(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The embedding gets no gradient from the depths."""
    trainer = reference.build(workload, topology, **variant)
    for depth in trainer.model.mtp:
        depth.enorm.register_forward_pre_hook(lambda _, e: e[0].detach())
    return trainer


def head_detached(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The head gets no gradient from the depths."""
    trainer = reference.build(workload, topology, **variant)
    model, honest = trainer.model, trainer.model.head
    calls: list[Tensor] = []

    def head(h: Tensor, labels: Tensor) -> Tensor:
        calls.append(h)
        if len(calls) == 1:
            return honest(h, labels)
        logits = F.linear(h, model.lm_head.weight.detach())
        return predictor.mean_loss(logits, labels, model.start, model.group)

    model.head = head
    model.register_forward_pre_hook(lambda *_: calls.clear())
    return trainer


def projection_not_summed(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """With sequence parallelism, M_k's gradient is that of a rank's part of the sequence."""
    trainer = reference.build(workload, topology, **variant)
    trainer.summed = tuple(name for name in trainer.summed if name != "eh_proj.weight")
    return trainer


def heads_of_their_own(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each depth holds an embedding and a head, with their gradients and moments."""
    trainer = reference.build(workload, topology, **variant)
    copies = 4 * 2 * len(trainer.model.mtp)
    trainer.copies = trainer.model.lm_head.weight.detach().expand(copies, -1, -1).clone()
    return trainer


BOTH = {"parity": {"fp32": GRADIENT, "bf16": GRADIENT}}
EVERYWHERE = "step 1, gradient of "
FAULTS = {
    "targets_shifted_by_one": Fault("mtp2", "dp2", BOTH, EVERYWHERE, "thorough"),
    "targets_beyond_the_end": Fault("mtp2", "dp2", {"parity": {"fp32": GRADIENT}}, EVERYWHERE, "thorough"),
    "depths_counted_on_their_own_rank": Fault("mtp2", "dp2", {"parity": {"fp32": GRADIENT}}, EVERYWHERE, "thorough"),
    "weight_of_every_depth": Fault("mtp2", "dp2", BOTH, EVERYWHERE, "thorough"),
    "halves_swapped": Fault("mtp2", "dp2", BOTH, EVERYWHERE, "thorough"),
    "every_depth_on_the_main_model": Fault(
        "mtp2", "dp2", {"parity": {"fp32": GRADIENT, "bf16": {"gradient"}}}, EVERYWHERE, "thorough"
    ),
    "embedding_detached": Fault(
        "mtp2", "dp2", {"parity": {"fp32": GRADIENT}}, "step 1, gradient of model.embed_tokens.weight", "thorough"
    ),
    "head_detached": Fault(
        "mtp2", "dp2", {"parity": {"fp32": GRADIENT}}, "step 1, gradient of lm_head.weight", "thorough"
    ),
    "projection_not_summed": Fault(
        "mtp2_sp", "tp2", {"parity": {"fp32": GRADIENT}}, "step 1, gradient of mtp.", "thorough"
    ),
    "heads_of_their_own": Fault("mtp2", "dp2", {"memory": {"fp32": {"states"}}}, workload="thorough"),
}
