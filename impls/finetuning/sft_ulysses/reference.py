"""Supervised fine-tuning on sequences that no rank holds whole: Ulysses (Jacobs et al. 2023, §3.1), as Arctic Long
Sequence Training uses it (Bekman et al. 2025, §3.1).

    U ranks share each row of s places, n = s/U each     two documents, 0 and 1, in a row on two ranks:

                    rank 0                rank 1
    document      0  0  0  0          0  1  1  1         whole on every rank: it says who sees whom in attention
    position      0  1  2  3          4  0  1  2         cut from the whole row, so that rank 1 does not begin at 0
    label of t   x₁ x₂ x₃ x₄          ·  y₁ y₂ ·         shifted in the whole row: the label of rank 0's last place
                                                         is rank 1's first token
    all but attention: its own places
    attention:       half of the heads, and all places; an all-to-all before it, another after it (ulysses.py)

The loss of a batch is the mean over the T tokens that the model must write. Ranks, and parts of a row, have unequal
numbers of them, and a part may have none: each token weighs 1/T, wherever it is. The mean of the ranks' means is
another objective.

    b rows   s places   n = s/U   h hidden size   a, k heads of queries, of keys   d head dimension   V vocabulary
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Topology, Workload
from impls.common.data import IGNORED
from impls.common.decoder import wide
from impls.common.experts import without_experts
from impls.common.mesh import device, mesh, moved, placed
from impls.common.optimizer import MasterWeights, clip
from impls.common.rope import rope_table
from impls.common.sums import sum_flat
from impls.common.weights import build_model
from impls.finetuning.sft.attention import sdpa, visible
from impls.finetuning.sft.data import PAD, Example
from impls.finetuning.sft.template import Rows, first_fit, layout, render
from impls.parallelism.context_parallel.ulysses import head_shares, to_heads, to_sequence


class UlyssesSFT:
    """dp × U ranks: U neighbours share the rows of a data-parallel share of the conversations."""

    def __init__(self, workload: Workload, topology: Topology, packing: str = "") -> None:
        without_experts(workload, "conversations are trained here with")
        head_shares(workload.model.num_attention_heads, workload.model.num_key_value_heads, topology.cp)
        self.workload, self.packing = workload, packing
        self.dp, self.U, places = topology.dp, topology.cp, mesh(topology)
        self.replica, self.part = places.get_local_rank("dp"), places.get_local_rank("cp")
        self.group = places.get_group("cp")
        self.model = build_model(workload)
        self.windows = [workload.model.window(layer) for layer in range(workload.model.num_hidden_layers)]
        for layer, window in zip(self.model.model.layers, self.windows, strict=True):
            layer.self_attn.attend = partial(self.attend, window)
        self.names = [name for name, _ in self.model.named_parameters()]
        self.optimizer = MasterWeights(self.model.parameters(), workload)

    def attend(self, window: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [b, a, n, d], k and v [b, k, n, d] → [b, a, n, d]"""
        q, k, v = to_heads(q, k, v, self.group)  # [b, a/U, s, d], [b, max(k/U, 1), s, d] twice
        return to_sequence(sdpa(q, k, v, self.seen[window]), self.group)

    def rows(self, examples: Sequence[Example]) -> Rows:
        """A micro-batch on the host, filled up so that U divides s; the labels are those of the next places."""
        texts = [render(example, every=False) for example in examples]
        lengths = [len(text.tokens) for text in texts]
        packed = first_fit(lengths, self.workload.sequence_length) if self.packing else [[i] for i in range(len(texts))]
        whole = layout(texts, packed)
        rest = -whole.tokens.shape[1] % self.U
        fill = {"tokens": PAD, "labels": IGNORED, "positions": 0, "document": -1}
        whole = Rows(**{name: F.pad(tensor, (0, rest), value=fill[name]) for name, tensor in whole._asdict().items()})
        return whole._replace(labels=F.pad(whole.labels[:, 1:], (0, 1), value=IGNORED))

    def own(self, rows: Rows) -> Rows:
        """This rank's n places of each row; whose each of all s places is, it needs to know whole."""
        cut = {name: tensor.chunk(self.U, dim=1)[self.part] for name, tensor in rows._asdict().items()}
        return Rows(**cut)._replace(document=rows.document)

    def loss(self, rows: Rows) -> Tensor:
        """Σ −log p over the labels of this rank's places."""
        (b, n), body = rows.tokens.shape, self.model.model
        x = body.embed_tokens(rows.tokens)  # [b, n, h]
        tables = rope_table(b * n, self.workload.model, device(), rows.positions.flatten())  # [b·n, d] each
        cos, sin = (table.view(b, 1, n, -1).to(x.dtype) for table in tables)
        self.seen = {window: visible(rows.document, window) for window in set(self.windows)}  # [b, 1, s, s] each
        for layer in body.layers:
            x = layer(x, cos, sin)
        logits = wide(self.model.lm_head(body.norm(x))).flatten(0, 1)  # [b·n, V]
        return F.cross_entropy(logits, rows.labels.flatten(), ignore_index=IGNORED, reduction="sum")

    def backward(self, batch: Sequence[Example]) -> Tensor:
        # 1. The conversations of this rank and its neighbours, in micro-batches; and its own places of them.
        share, k = len(batch) // self.dp, self.workload.micro_batches
        given, size = batch[self.replica * share : (self.replica + 1) * share], share // k
        micro_batches = [self.own(self.rows(given[start : start + size])) for start in range(0, share, size)]
        # 2. T, over all micro-batches and ranks.
        count = moved(torch.stack([(rows.labels != IGNORED).sum() for rows in micro_batches]).sum())
        dist.all_reduce(count)
        # 3. Each token weighs 1/T.
        total = torch.zeros((), dtype=torch.float64, device=device())
        for rows in micro_batches:
            loss = self.loss(placed(rows)) / count
            loss.backward()
            total += loss.detach()
        self.seen = {}
        # 4. Parts of a row, like rows, are parts of one sum: so are their gradients.
        sum_flat([p.grad for p in self.model.parameters() if p.grad is not None], dist.group.WORLD)
        return total * self.dp * self.U

    def update(self) -> None:
        clip([p.grad for p in self.model.parameters() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return {n: p.grad.cpu() for n, p in self.model.named_parameters() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: m.detach().cpu() for n, m in zip(self.names, self.optimizer.masters, strict=True)}


def build(workload: Workload, topology: Topology, packing: str = "") -> UlyssesSFT:
    return UlyssesSFT(workload, topology, packing)
