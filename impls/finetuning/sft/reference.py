"""Supervised fine-tuning (Ouyang et al. 2022, §3.5): a language model learns the answers of conversations.

The loss of a batch is the mean over the tokens that the model must write, whichever rank and micro-batch they are in:

    L = 1/T · Σ_n Σ_t ℓ_nt,   ℓ_nt = −log p(x_nt | x_n,<t)          T = number of all ℓ_nt

    n conversations   t a learnt token (template.py)   b rows   s places of a row   h hidden size   V vocabulary

The mean of each micro-batch's or rank's mean is another objective, which weighs tokens by the length of the others.

Three layouts of the same conversations give the same loss:

    padded        a row each, filled up to the longest          a b c .    a b c d    a b . .
    packed        rows of several, within the context's length  a b c d    a b c a b .            (Krell et al., §3.2)
    padding-free  a micro-batch is one row                      a b c a b c d a b

In the last two, positions start at 0 in each conversation, no token sees another conversation (attention.py), and the
first token of a conversation is not a label of the one before it. RoPE sees differences of positions only, so positions
that run on would do no harm here; they do in engines that look for the boundaries in them, as Transformers does.

Label smoothing (Szegedy et al. 2016, §7):  ℓ = (1−ε) · −log p(x) + ε · 1/V · Σ_v −log p(v)
NEFTune (Jain et al. 2023, algorithm 1):  embeddings + α/√(L h) · u,  u uniform in ±1, L the conversation's length
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Topology, Unsupported, Workload
from impls.common.data import IGNORED
from impls.common.decoder import wide
from impls.common.experts import without_experts
from impls.common.mesh import device, moved, placed
from impls.common.optimizer import MasterWeights, clip
from impls.common.rope import rope_table
from impls.common.sums import sum_flat
from impls.common.weights import build_model
from impls.finetuning.sft.attention import WAYS
from impls.finetuning.sft.data import Example
from impls.finetuning.sft.template import Rows, first_fit, layout, render, truncate


class SFT:
    """``every``: all answers are learnt, not the last alone; ``keep``: the side of a long conversation that stays;
    ``smoothing``: ε; ``noise``: α."""

    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        every: bool = False,
        packing: str = "",
        attention: str = "sdpa",
        smoothing: float = 0.0,
        keep: str = "",
        noise: float = 0.0,
    ) -> None:
        without_experts(workload, "conversations are trained here with")
        if attention == "flex" and device().type == "cpu":
            raise Unsupported("FlexAttention has no backward pass on a CPU")
        self.workload, self.rank, self.ranks = workload, dist.get_rank(), topology.dp
        self.every, self.packing, self.keep, self.smoothing, self.noise = every, packing, keep, smoothing, noise
        self.mask, self.way = WAYS[attention]
        self.model = build_model(workload)
        self.windows = [workload.model.window(layer) for layer in range(workload.model.num_hidden_layers)]
        for layer, window in zip(self.model.model.layers, self.windows, strict=True):
            layer.self_attn.attend = lambda q, k, v, window=window: self.way(q, k, v, self.seen[window])
        self.names = [name for name, _ in self.model.named_parameters()]
        self.optimizer = MasterWeights(self.model.parameters(), workload)

    def rows(self, examples: Sequence[Example]) -> Rows:
        """A micro-batch, on the host."""
        room = self.workload.sequence_length
        texts = [truncate(render(example, self.every), room, self.keep) for example in examples]
        if self.packing == "rows":
            rows = first_fit([len(text.tokens) for text in texts], room)
        else:
            rows = [list(range(len(texts)))] if self.packing == "one" else [[i] for i in range(len(texts))]
        return layout(texts, rows)

    def noises(self, examples: Sequence[Example], rows: Rows) -> Tensor:
        """NEFTune's addition to the embeddings, [b, s, h]: u of each conversation at its places, by its own length."""
        found = torch.zeros(*rows.tokens.shape, self.workload.model.hidden_size)
        for n, example in enumerate(examples):
            here = rows.document == n  # [b, s], L places
            u = example.noise[: here.sum()]  # [L, h]
            found[here] = self.noise / u.numel() ** 0.5 * u
        return found

    def logits(self, rows: Rows, noise: Tensor | None) -> Tensor:
        """[b, s, V]"""
        (b, s), body = rows.tokens.shape, self.model.model
        x = body.embed_tokens(rows.tokens)  # [b, s, h]
        x = x if noise is None else x + noise.to(x.dtype)
        tables = rope_table(b * s, self.workload.model, device(), rows.positions.flatten())  # [b·s, d] each
        cos, sin = (table.view(b, 1, s, -1).to(x.dtype) for table in tables)
        self.seen = {window: self.mask(rows.document, window) for window in set(self.windows)}
        for layer in body.layers:
            x = layer(x, cos, sin)
        return self.model.lm_head(body.norm(x))

    def loss(self, rows: Rows, noise: Tensor | None) -> Tensor:
        """Σ ℓ over the learnt tokens: the logits at place t are for the token at place t + 1."""
        logits, labels = wide(self.logits(rows, noise))[:, :-1], rows.labels[:, 1:]
        smoothing, flat = self.smoothing, logits.flatten(0, 1)
        return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)

    def backward(self, batch: Sequence[Example]) -> Tensor:
        # 1. This rank's conversations, in micro-batches.
        share, k = len(batch) // self.ranks, self.workload.micro_batches
        own, size = batch[self.rank * share : (self.rank + 1) * share], share // k
        parts = [own[start : start + size] for start in range(0, share, size)]
        micro_batches = [self.rows(part) for part in parts]
        # 2. T, over all micro-batches and ranks.
        count = moved(torch.stack([(rows.labels[:, 1:] != IGNORED).sum() for rows in micro_batches]).sum())
        dist.all_reduce(count)
        # 3. Each token weighs 1/T.
        total = torch.zeros((), dtype=torch.float64, device=device())
        for part, rows in zip(parts, micro_batches, strict=True):
            noise = moved(self.noises(part, rows)) if self.noise else None
            loss = self.loss(placed(rows), noise) / count
            loss.backward()
            total += loss.detach()
        self.seen = {}
        # 4. The sum over ranks is the whole batch's gradient, since T counts all of them.
        sum_flat([p.grad for p in self.model.parameters() if p.grad is not None], dist.group.WORLD)
        return total * self.ranks

    def update(self) -> None:
        clip([p.grad for p in self.model.parameters() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return {n: p.grad.cpu() for n, p in self.model.named_parameters() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: m.detach().cpu() for n, m in zip(self.names, self.optimizer.masters, strict=True)}


def build(workload: Workload, topology: Topology, saved: bool = False, sharded: bool = False, **variant: Any) -> SFT:
    if sharded:
        raise Unsupported("sharded weights have their reference in the topic zero")
    return SFT(workload, topology, **variant)
