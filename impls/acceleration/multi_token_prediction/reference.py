"""Multi-token prediction (DeepSeek-AI 2024, arXiv:2412.19437, §2.2, equations 21 to 25): D modules behind the main
model, of which module k predicts token i + k + 1 at position i.

    h'_i^k = M_k [RMSNorm(h_i^{k−1}); RMSNorm(Emb(t_{i+k}))]                        (21)
    h^k_{1:T−k} = TRM_k(h'^k_{1:T−k})                                               (22)
    P_{i+k+1}^k = OutHead(h_i^k)                                                    (23)
    L^k = −1/N_k Σ_i log P_i^k[t_i]     over the N_k tokens t_{2+k:T+1}             (24)
    L = L^0 + λ/D Σ_k L^k                                                           (25)

                 t_1 … t_T             t_2 …                 t_3 …
                   Emb                   Emb                   Emb        one embedding
                    │                     │                     │
                main model ── h^0 ── M_1, TRM_1 ── h^1 ── M_2, TRM_2      a causal chain
                    │                     │                     │
                 OutHead               OutHead               OutHead      one head
                 t_2 …                 t_3 …                 t_4 …

    T length   D depths   h hidden_size   b sequences of a micro-batch   s positions of a sequence on a rank   λ weight

What the paper leaves open. Where the final norm is: h^k is what the head reads, after a norm of each depth's own, as in
DeepSeek-V3's weights and in Megatron-Core. Whether ``eh_proj`` holds M_k's half for h first: it does, as in (21);
Megatron-Core and DeepSeek-V3's weights have the other half first. What N_k is where lengths differ: the tokens with a
label among t_{2+k:T+1} of the whole batch, so that each L^k is a mean; (24) prints 1/T instead (``over_t``), which is
the number of the main loss's tokens, and gives L^k a factor N_k/N_0.

The ranks. Tokens and labels are shifted before a sequence is cut, so no rank needs a neighbour's; positions that have
no target get a label that does not count, and causality keeps what they compute to themselves. N_k is a sum over all
ranks with other tokens (dp × cp), and so are gradients. Inside a rank's part of the model everything is as in
tensor_parallel, sequence_parallel and context_parallel. Only M_k, which acts on each position alone, is whole on every
rank, as the norms are.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.acceleration.multi_token_prediction.plain import initial
from impls.acceleration.multi_token_prediction.predictor import Predictor, SequencePredictor, shifted
from impls.common.clipping import clip_by_global_norm
from impls.common.experts import without_experts
from impls.common.features import without
from impls.common.mesh import cut, device, lines, mesh, placed
from impls.common.optimizer import MasterWeights
from impls.common.shards import collect, dim, shard
from impls.common.sums import sum_flat
from impls.common.weights import TORCH_DTYPES
from impls.parallelism.hybrid_3d.stage import Context, ring
from impls.parallelism.sequence_parallel.operators import columns
from impls.parallelism.sequence_parallel.reference import SequenceParallel
from impls.parallelism.tensor_parallel.reference import TensorParallel


def total(counts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """N_0 … N_D, [D + 1], from the numbers of every micro-batch on this rank, [micro-batches, D + 1]."""
    number = counts.sum(0, dtype=torch.int32)
    dist.all_reduce(number, group=group)
    return number


class MultiTokenPrediction:
    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        depth: int,
        weight: float,
        over_t: bool = False,
        sequence_parallel: bool = False,
    ) -> None:
        without_experts(workload, "multi-token prediction is set up here with")
        without(workload, "a depth, which has no place among the layers,", "sliding_window")
        if topology.pp > 1:
            raise Unsupported("a pipeline's last stage alone would have all depths; they are not cut into stages here")
        places = mesh(topology)
        self.workload, self.topology, self.over_t = workload, topology, over_t
        self.tp, cp, self.dp_rank = places.get_group("tp"), places.get_group("cp"), places.get_local_rank("dp")
        self.replicas = dist.new_subgroups_by_enumeration(lines(places, "dp", "cp"))[0]
        self.context = Context(workload, topology.cp, cp.rank()) if topology.cp > 1 else None
        self.factors = torch.tensor([1.0] + [weight / depth] * depth, dtype=torch.float64, device=device())  # (25)
        with torch.device("meta"):
            made = (workload.model, self.tp, depth)
            model = SequencePredictor(*made, columns) if sequence_parallel else Predictor(*made)
        self.model = model.to(TORCH_DTYPES[workload.dtype]).to_empty(device=device())
        if workload.model.tie_word_embeddings:  # to_empty unties the embedding
            self.model.lm_head.weight = self.model.model.embed_tokens.weight
        if self.context:
            self.context.enter(self.model, ring(workload, cp))
        self.weights = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, full in initial(workload, depth):
                self.weights[name].copy_(shard(name, full, self.tp.rank(), topology.tp))
        self.summed = (*SequenceParallel.summed, "eh_proj.weight") if sequence_parallel else TensorParallel.summed
        self.optimizer = MasterWeights(self.weights.values(), workload)

    def backward(self, batch: Batch) -> Tensor:
        # 1. This rank's rows and positions of the batch, shifted by 0 … D, and their labels' numbers.
        micro_batches = [self.shifts(micro) for micro in cut(batch, self.workload, self.dp_rank, self.topology.dp)]
        counts = torch.stack([torch.stack([(part.labels >= 0).sum() for part in each]) for each in micro_batches])
        # 2. N_0 … N_D: over all ranks that have other tokens.
        number = total(counts, self.replicas)  # [D + 1]
        factors = self.factors * number / number[0] if self.over_t else self.factors
        # 3. Each micro-batch's part of every mean: n_k/N_k.
        parts = counts.double() / number.clamp(min=1)  # [micro-batches, D + 1]
        self.losses = torch.zeros_like(self.factors)  # [D + 1]
        for each, part in zip(micro_batches, parts, strict=True):
            losses = self.model(each) * part
            (losses * factors).sum().backward()
            self.losses += losses.detach()
        # 4. Gradients of the whole batch's L.
        sum_flat([p.grad for n, p in self.weights.items() if n.endswith(self.summed)], self.tp)
        sum_flat([p.grad for p in self.weights.values()], self.replicas)
        return self.losses[0] * self.replicas.size()

    def shifts(self, micro: Batch) -> list[Batch]:
        every = [shifted(micro, k) for k in range(len(self.factors))]
        return [placed(self.context.part(each) if self.context else each) for each in every]

    def observe(self) -> Mapping[str, float]:
        """L^1 … L^D of the step."""
        dist.all_reduce(self.losses, group=self.replicas)
        return {f"mtp_{k}": loss for k, loss in enumerate(self.losses.tolist()) if k}

    def update(self) -> None:
        divided = {name for name in self.weights if dim(name) is not None} if self.tp.size() > 1 else set()
        parts = [p.grad for name, p in self.weights.items() if name in divided]
        whole = [p.grad for name, p in self.weights.items() if name not in divided]
        groups = {(self.tp,): parts} if divided else {}
        clip_by_global_norm({**groups, (): whole}, self.workload.max_grad_norm)
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return collect({name: p.grad for name, p in self.weights.items()}, self.tp)

    def parameters(self) -> Mapping[str, Tensor]:
        return collect(dict(zip(self.weights, self.optimizer.masters, strict=True)), self.tp)


def build(workload: Workload, topology: Topology, **variant: Any) -> MultiTokenPrediction:
    return MultiTokenPrediction(workload, topology, **variant)
