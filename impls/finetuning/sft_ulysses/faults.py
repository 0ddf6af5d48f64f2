"""Fine-tuning on a cut sequence with exactly one thing broken."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, LOSS, REPLICAS, Fault
from impls.common.data import IGNORED
from impls.finetuning.sft.data import Example
from impls.finetuning.sft.template import Rows
from impls.finetuning.sft_ulysses import reference
from impls.finetuning.sft_ulysses.grid import CUT, WINDOWED


def _cut(change: Callable[[Rows], Rows]) -> None:
    """Changes this rank's part of the rows."""
    honest = reference.UlyssesSFT.own
    reference.UlyssesSFT.own = lambda self, rows: change(honest(self, rows))


def mean_of_the_ranks(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each rank divides by the number of its own tokens, and the mean over ranks is taken."""

    class Alone:
        def __getattr__(self, name: str) -> Any:
            return getattr(dist, name)

        def all_reduce(self, count: Tensor) -> None:
            count.clamp_(min=1).mul_(topology.world_size)

    reference.dist = Alone()
    return reference.build(workload, topology, **variant)


class MeanOfMeans(reference.UlyssesSFT):
    """The mean of each micro-batch over the ranks that share it, and the mean of these."""

    def backward(self, batch: Sequence[Example]) -> Tensor:
        share, k, total = len(batch) // self.dp, self.workload.micro_batches, torch.zeros(())
        given = batch[self.replica * share : (self.replica + 1) * share]
        for start in range(0, share, share // k):
            rows = reference.placed(self.own(self.rows(given[start : start + share // k])))
            count = (rows.labels != IGNORED).sum()
            dist.all_reduce(count, group=self.group)
            loss = self.loss(rows) / count / k / self.dp
            loss.backward()
            total = total + loss.detach().cpu()
        reference.sum_flat([p.grad for p in self.model.parameters()], dist.group.WORLD)
        return total * self.dp * self.U


def mean_of_micro_batches(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The parts of a row are weighed by their tokens, and the micro-batches are not."""
    return MeanOfMeans(workload, topology, **variant)


def positions_begin_on_each_rank(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A rank counts the positions of its own places from 0."""
    _cut(lambda rows: rows._replace(positions=torch.arange(rows.tokens.shape[1]).expand_as(rows.tokens).contiguous()))
    return reference.build(workload, topology, **variant)


def boundaries_of_the_rank_alone(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A rank takes the documents of its own places for those of every part, as if each rank's were alike."""
    honest = reference.UlyssesSFT.own

    def own(self: reference.UlyssesSFT, rows: Rows) -> Rows:
        mine = rows.document.chunk(self.U, dim=1)[self.part]
        return honest(self, rows)._replace(document=mine.repeat(1, self.U))

    reference.UlyssesSFT.own = own
    return reference.build(workload, topology, **variant)


def parts_see_every_document(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Attention over the whole row is causal and knows no boundaries."""
    honest = reference.visible
    reference.visible = lambda document, window: honest(torch.zeros_like(document), window)
    return reference.build(workload, topology, **variant)


def the_label_across_the_cut_is_lost(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Labels are shifted after the cut: the last place of each rank's part has none."""

    def lost(rows: Rows) -> Rows:
        labels = rows.labels.clone()
        labels[:, -1] = IGNORED
        return rows._replace(labels=labels)

    _cut(lost)
    return reference.build(workload, topology, **variant)


def windows_are_forgotten(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Attention over the whole row reaches back to the document's start in every layer."""
    honest = reference.visible
    reference.visible = lambda document, window: honest(document)
    return reference.build(workload, topology, **variant)


def heads_come_back_in_another_order(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The second exchange returns the heads of the other ranks first."""
    honest = reference.to_sequence
    reference.to_sequence = lambda o, group: honest(o, group).roll(o.shape[1], dims=1)
    return reference.build(workload, topology, **variant)


def gradients_of_the_replica_alone(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The ranks that share rows sum their gradients, and the replicas do not."""
    honest = reference.sum_flat
    built = reference.build(workload, topology, **variant)
    reference.sum_flat = lambda tensors, group: honest(tensors, built.group)
    return built


BOTH = ("fp32", "bf16")
CLEAR = {"parity": dict.fromkeys(BOTH, GRADIENT | LOSS)}
NORM = {"parity": dict.fromkeys(BOTH, frozenset({"gradient"}))}
PACKED = "sft_ulysses_packed"

FAULTS = {
    "mean_of_the_ranks": Fault("sft_ulysses", "cp2", NORM, workload=CUT),
    "mean_of_micro_batches": Fault("sft_ulysses", "dp2cp2", NORM, workload=CUT),
    "positions_begin_on_each_rank": Fault("sft_ulysses", "cp2", NORM, workload=CUT),
    "boundaries_of_the_rank_alone": Fault(PACKED, "cp2", CLEAR, workload=CUT),
    "parts_see_every_document": Fault(
        PACKED, "cp2", {"parity": {"fp32": GRADIENT | LOSS, "bf16": frozenset({"gradient"})}}, workload=CUT
    ),
    "the_label_across_the_cut_is_lost": Fault("sft_ulysses", "cp4", NORM, workload=CUT),
    "windows_are_forgotten": Fault(PACKED, "cp2", NORM, workload=WINDOWED),
    "heads_come_back_in_another_order": Fault("sft_ulysses", "cp4", CLEAR, workload=CUT),
    "gradients_of_the_replica_alone": Fault(
        "sft_ulysses", "dp2cp2", {"parity": dict.fromkeys(BOTH, GRADIENT | REPLICAS)}, workload=CUT
    ),
}
