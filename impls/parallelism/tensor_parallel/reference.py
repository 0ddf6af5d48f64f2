"""Tensor parallelism: the matrices of every layer are cut across t ranks (Shoeybi et al. 2019, "Megatron-LM", §3).

A block is a column-parallel product followed by a row-parallel one, so that a single sum suffices (figure 3):

    Y_i = σ(X A_i)            A = [A_1 … A_t] cut by columns: a σ of single elements, or of whole heads, stays local
    Z   = Σ_i Y_i B_i         B = [B_1; …; B_t] cut by rows: the sum is g
          ┌─ A_1 ─ σ ─ B_1 ─┐
    X ─ f ┤                 ├ g ─ Z        f: x forward, Σ over ranks backward; g: the other way round
          └─ A_2 ─ σ ─ B_2 ─┘

Attention: A is q, k, v by heads, B the output projection. MLP: A is gate and up, B is down. Each layer needs two
all-reduces of [b, s, h] forward (g) and two backward (f). The vocabulary is also cut: the embedding ends in g, the head
begins with f, and the logits stay on their ranks.

    b batch   s sequence   h hidden_size   d head_dim   V vocab_size   v this rank's part of V   t ranks
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Batch, ModelConfig, Topology, Trainer, Workload
from impls.common.clipping import clip_by_global_norm
from impls.common.decoder import MLP, Attention, Decoder, Layer, mean
from impls.common.experts import without_experts
from impls.common.mesh import device, mesh, share
from impls.common.optimizer import MasterWeights
from impls.common.rope import rope_table, rotate
from impls.common.shards import bounds, collect, dim, shard
from impls.common.sums import mean_flat, sum_flat
from impls.common.weights import TORCH_DTYPES, initial
from impls.parallelism.tensor_parallel.around import put_around
from impls.parallelism.tensor_parallel.operators import Group, biased, column_parallel, reduce
from impls.parallelism.tensor_parallel.vocabulary import CrossEntropy, embedding


def heads(projected: Sequence[Tensor], part: Attention, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries, keys and values of this rank's heads, [b, s, n/t] each → the attention's output, [b, s, n/t]."""
    b, s, _ = projected[0].shape
    pairs = zip(projected, (part.q_proj, part.k_proj, part.v_proj), strict=True)
    query, key, value = (biased(y, of).view(b, s, -1, part.d) for y, of in pairs)
    # Contiguous, as after a norm: attention's output has its query's layout, and would be copied to be [b, s, n/t].
    query, key = (rotate(y.contiguous().transpose(1, 2), cos, sin) for y in (part.q_norm(query), part.k_norm(key)))
    return part.attend(query, key, value.transpose(1, 2)).transpose(1, 2).reshape(b, s, -1)


def attention(x: Tensor, part: Attention, cos: Tensor, sin: Tensor, group: Group) -> Tensor:
    """[b, s, h] → [b, s, h], over this rank's heads."""
    projected = column_parallel(x, group, part.q_proj.weight, part.k_proj.weight, part.v_proj.weight)
    return biased(reduce(F.linear(heads(projected, part, cos, sin), part.o_proj.weight), group), part.o_proj)


def mlp(x: Tensor, part: MLP, group: Group) -> Tensor:
    """[b, s, h] → [b, s, h], over this rank's part of the width."""
    gate, up = column_parallel(x, group, part.gate_proj.weight, part.up_proj.weight)
    y = F.silu(biased(gate, part.gate_proj)) * biased(up, part.up_proj)
    return biased(reduce(F.linear(y, part.down_proj.weight), group), part.down_proj)


class ParallelDecoder(Decoder):
    """This rank's part of the decoder: the dense one with fewer heads, a narrower MLP and a shorter vocabulary."""

    positions: Tensor | None = None  # in the sequence, if a rank does not have all of them

    def __init__(self, config: ModelConfig, group: Group) -> None:
        t = group.size()
        self.start, end = bounds(config.vocab_size, group.rank(), t)
        part = {n: getattr(config, n) // t for n in ("num_attention_heads", "num_key_value_heads", "intermediate_size")}
        super().__init__(replace(config, vocab_size=end - self.start, **part))
        self.group = group

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Token ids [b, s] and labels [b, s] → mean cross-entropy, the same scalar on every rank."""
        x = self.blocks(self.embed(tokens), self.model.layers, tokens.shape[1])
        return self.loss(x, labels)

    def embed(self, tokens: Tensor) -> Tensor:  # [b, s] → [b, s, h]
        return reduce(embedding(tokens, self.model.embed_tokens.weight, self.start), self.group)

    def blocks(self, x: Tensor, layers: Iterable[Layer], s: int) -> Tensor:
        """[b, s, h] → [b, s, h]"""
        cos, sin = (table.to(x.dtype) for table in rope_table(s, self.config, x.device, self.positions))
        for layer in layers:
            x = x + attention(layer.input_layernorm(x), layer.self_attn, cos, sin, self.group)
            x = x + self.feed_forward(layer.post_attention_layernorm(x), layer.mlp)
        return x

    def feed_forward(self, x: Tensor, part: MLP) -> Tensor:
        return mlp(x, part, self.group)

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """[b, s, h] and [b, s] → mean cross-entropy, the same scalar on every rank."""
        (logits,) = column_parallel(self.model.norm(x), self.group, self.lm_head.weight)  # [b, s, v]
        return mean(CrossEntropy.apply(logits, labels, self.start, self.group), labels)


class TensorParallel:
    # A QK-norm's gain is replicated but acts only on this rank's heads, so its gradient is a sum over tp. Outside the
    # blocks every rank has the same activations and gradients, and no sum is needed.
    summed: tuple[str, ...] = ("q_norm.weight", "k_norm.weight")

    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        decoder: Callable[[ModelConfig, Group], ParallelDecoder] = ParallelDecoder,
    ) -> None:
        without_experts(workload, "tensor parallelism alone cuts")
        places = mesh(topology)
        self.workload, self.topology = workload, topology
        self.tp, self.dp, self.dp_rank = places.get_group("tp"), places.get_group("dp"), places.get_local_rank("dp")
        with torch.device("meta"):
            self.model = decoder(workload.model, self.tp).to(TORCH_DTYPES[workload.dtype])
        self.model.to_empty(device=device())
        if workload.model.tie_word_embeddings:  # to_empty unties the embedding
            self.model.lm_head.weight = self.model.model.embed_tokens.weight
        self.weights = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, full in initial(workload):
                self.weights[name].copy_(shard(name, full, self.tp.rank(), topology.tp))
        self.optimizer = MasterWeights(self.weights.values(), workload)

    def backward(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=device(), dtype=torch.float64)
        for micro, part in share(batch, self.workload, self.dp_rank, self.topology.dp):
            loss = self.model(*micro) * part * self.topology.dp
            loss.backward()
            total += loss.detach()
        sum_flat([p.grad for n, p in self.weights.items() if n.endswith(self.summed)], self.tp)
        mean_flat([p.grad for p in self.weights.values()], self.dp)
        return total

    def update(self) -> None:
        sharded = [p.grad for n, p in self.weights.items() if dim(n) is not None]
        whole = [p.grad for n, p in self.weights.items() if dim(n) is None]
        clip_by_global_norm({(self.tp,): sharded, (): whole}, self.workload.max_grad_norm)
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return collect({name: p.grad for name, p in self.weights.items()}, self.tp)

    def parameters(self) -> Mapping[str, Tensor]:
        return collect(dict(zip(self.weights, self.optimizer.masters, strict=True)), self.tp)


def build(workload: Workload, topology: Topology, **around: bool) -> Trainer:
    return put_around(TensorParallel(workload, topology), **around)
