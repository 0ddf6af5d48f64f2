"""Supervised fine-tuning with exactly one thing broken."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, LOSS, REPLICAS, Fault
from impls.common.data import IGNORED
from impls.common.decoder import wide
from impls.finetuning.sft import reference
from impls.finetuning.sft.data import END, PAD, Example
from impls.finetuning.sft.grid import CONVERSATIONS
from impls.finetuning.sft.template import Rendered, Rows


def _rendered(change: Callable[[Rendered], Rendered]) -> None:
    honest = reference.render
    reference.render = lambda example, every: change(honest(example, every))


def _laid_out(change: Callable[[Rows], Rows]) -> None:
    honest = reference.layout
    reference.layout = lambda texts, rows: change(honest(texts, rows))


def prompts_are_learnt(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Every token of a conversation has a loss."""
    _rendered(lambda text: Rendered(text.tokens, text.tokens))
    return reference.build(workload, topology, **variant)


def labels_shifted_twice(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The data shifts labels, and so does the loss: each token predicts the one after the next."""
    _laid_out(lambda rows: rows._replace(labels=torch.nn.functional.pad(rows.labels[:, 1:], (0, 1), value=IGNORED)))
    return reference.build(workload, topology, **variant)


def documents_see_each_other(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The mask of a packed row is causal and knows no boundaries."""
    reference.WAYS = {
        name: (lambda document, window, mask=mask: mask(torch.zeros_like(document), window), attend)
        for name, (mask, attend) in reference.WAYS.items()
    }
    return reference.build(workload, topology, **variant)


def positions_restart_at_every_end(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Positions start at 0 after each end token, and so inside a conversation of several turns."""

    def restarted(rows: Rows) -> Rows:
        begins = torch.nn.functional.pad(rows.tokens[:, :-1] == END, (1, 0), value=True)  # [b, s]
        places = torch.arange(rows.tokens.shape[1]).expand_as(rows.tokens)
        return rows._replace(positions=places - torch.where(begins, places, 0).cummax(1).values)

    _laid_out(restarted)
    return reference.build(workload, topology, **variant)


class MeanOfMeans(reference.SFT):
    def backward(self, batch: Sequence[Example]) -> Tensor:
        share, k = len(batch) // self.ranks, self.workload.micro_batches
        own, total = batch[self.rank * share : (self.rank + 1) * share], 0.0
        for start in range(0, share, share // k):
            rows = reference.placed(self.rows(own[start : start + share // k]))
            loss = self.loss(rows, None) / (rows.labels[:, 1:] != IGNORED).sum() / k / self.ranks
            loss.backward()
            total = total + loss.detach()
        reference.sum_flat([p.grad for p in self.model.parameters()], dist.group.WORLD)
        return total * self.ranks


def mean_of_means(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each micro-batch has the same weight, whatever its number of tokens."""
    return MeanOfMeans(workload, topology, **variant)


def tokens_of_the_rank_alone(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each rank divides by its own number of tokens, times the number of ranks."""

    class Alone:
        def __getattr__(self, name: str) -> Any:
            return getattr(dist, name)

        def all_reduce(self, count: Tensor) -> None:
            count.mul_(topology.dp)

    reference.dist = Alone()
    return reference.build(workload, topology, **variant)


def gradients_stay_on_their_rank(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each rank steps by its own conversations."""
    reference.sum_flat = lambda tensors, group: None
    return reference.build(workload, topology, **variant)


def the_last_end_is_cut(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The template does not end the last answer, so the model never learns to stop."""
    _rendered(lambda text: Rendered(text.tokens[:-1], text.labels[:-1]))
    return reference.build(workload, topology, **variant)


def ends_look_like_padding(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Labels are hidden where the token is the padding token, which is also the end of every answer."""
    _laid_out(lambda rows: rows._replace(labels=rows.labels.masked_fill(rows.tokens == PAD, IGNORED)))
    return reference.build(workload, topology, **variant)


def padding_is_learnt(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The filled-up places of a row have labels: the end, again and again."""
    _laid_out(lambda rows: rows._replace(labels=torch.where(rows.document < 0, PAD, rows.labels)))
    return reference.build(workload, topology, **variant)


def truncated_on_the_wrong_side(workload: Workload, topology: Topology, keep: str, **variant: Any) -> Trainer:
    """The start of a conversation stays in place of its end."""
    return reference.build(workload, topology, keep="start", **variant)


def a_document_predicts_the_next(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The first token of a document that lost its start is learnt, from the end of the document before it."""

    def truncate(text: Rendered, length: int, keep: str) -> Rendered:
        return Rendered(text.tokens[-length:], text.labels[-length:])

    reference.truncate = truncate
    return reference.build(workload, topology, **variant)


def smoothed_without_the_rest(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """ε/V is added, and the label keeps its whole weight."""

    def loss(self: reference.SFT, rows: Rows, noise: Tensor | None) -> Tensor:
        log_p = wide(self.logits(rows, noise))[:, :-1].log_softmax(-1)
        labels = rows.labels[:, 1:]
        label = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return -((label + self.smoothing * log_p.mean(-1)) * (labels != IGNORED)).sum()

    reference.SFT.loss = loss
    return reference.build(workload, topology, **variant)


def noise_by_the_padded_length(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """L is the length of the padded row, so the noise of a short conversation depends on its neighbours."""
    honest = reference.SFT.noises

    def noises(self: reference.SFT, examples: Sequence[Example], rows: Rows) -> Tensor:
        own = (rows.document >= 0).sum(1)[:, None, None]  # [b, 1, 1]
        return honest(self, examples, rows) * (own / rows.tokens.shape[1]).sqrt()

    reference.SFT.noises = noises
    return reference.build(workload, topology, **variant)


BOTH = ("fp32", "bf16")
CLEAR = {"parity": dict.fromkeys(BOTH, GRADIENT | LOSS)}
# The slope over all gradients moves little where some tokens weigh more and others less.
FAINT = {"parity": {"fp32": GRADIENT, "bf16": frozenset({"gradient"})}}


def _fault(variant: str, topology: str = "dp1", finds: Mapping[str, Any] = CLEAR) -> Fault:
    return Fault(variant, topology, finds, workload=CONVERSATIONS)


FAULTS = {
    "prompts_are_learnt": _fault("sft_padded"),
    "labels_shifted_twice": _fault("sft_padded"),
    "documents_see_each_other": _fault("sft_packed"),
    "positions_restart_at_every_end": _fault("sft_packed"),
    "mean_of_means": _fault("sft_padded", finds=FAINT),
    "tokens_of_the_rank_alone": _fault("sft_padded", "dp2", FAINT),
    "gradients_stay_on_their_rank": Fault(
        "sft_padded", "dp2", {"parity": dict.fromkeys(BOTH, GRADIENT | REPLICAS)}, workload=CONVERSATIONS
    ),
    "the_last_end_is_cut": _fault("sft_padded"),
    "ends_look_like_padding": _fault("sft_assistant_only"),
    "padding_is_learnt": _fault("sft_padded"),
    "truncated_on_the_wrong_side": _fault("sft_truncated_left"),
    "a_document_predicts_the_next": _fault("sft_padding_free_left", finds={"parity": {"fp32": GRADIENT | LOSS}}),
    "smoothed_without_the_rest": _fault("sft_smoothed"),
    "noise_by_the_padded_length": _fault("sft_neftune", finds=FAINT),
}
