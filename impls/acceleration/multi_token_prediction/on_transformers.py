"""Transformers' ``MtpModel`` behind its Qwen3, on the same weights: it is made for drafting, but its modules can be
trained. Its ``forward(labels=…)`` raises a TypeError (``loss`` is None when the first depth's loss is added to it), so
the chain is that of its ``forward_layer``, and the losses are its own ``loss_function`` with a number of items.

Its projection reads [RMSNorm(Emb); RMSNorm(h)], unless ``mtp_hidden_states_first`` says otherwise, as it does here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from harness.spec import Batch, Topology, Unsupported, Workload
from harness.spec.config import OWN
from impls.acceleration.multi_token_prediction.plain import initial
from impls.common.data import IGNORED
from impls.common.experts import without_experts
from impls.common.features import qwen3_alone
from impls.common.mesh import cut, device, placed
from impls.common.optimizer import MasterWeights, clip
from impls.common.sums import sum_flat
from impls.common.weights import TORCH_DTYPES

PARTS = {"mtp_block": "layer", "post_norm": "norm"}  # its name of a part → ours


def named(main: Qwen3ForCausalLM, mtp: MtpModel) -> Iterator[tuple[str, Tensor]]:
    """Canonical name and parameter."""
    yield from main.named_parameters()
    for name, parameter in mtp.layers.named_parameters():
        depth, part, rest = name.split(".", 2)
        yield f"mtp.{depth}.{PARTS.get(part, part)}.{rest}", parameter


class Drafting:
    def __init__(self, workload: Workload, depth: int, weight: float, over_t: bool) -> None:
        without_experts(workload, "Transformers' Qwen3ForCausalLM has")
        qwen3_alone(workload, "Transformers' MtpModel is set up here behind Qwen3ForCausalLM; it")
        model = workload.model
        config = Qwen3Config(
            **{name: value for name, value in vars(model).items() if name in OWN},
            max_position_embeddings=workload.sequence_length + depth,
            num_mtp_layers=depth,
            mtp_layer_types=["full_attention"] * depth,
            mtp_hidden_states_first=True,
            attn_implementation="sdpa",
            dtype=TORCH_DTYPES[workload.dtype],
        )
        self.workload, self.over_t = workload, over_t
        self.factors = [1.0] + [weight / depth] * depth
        self.main = Qwen3ForCausalLM(config).to(device(), TORCH_DTYPES[workload.dtype])
        self.mtp = MtpModel(self.main, depth).to(device(), TORCH_DTYPES[workload.dtype])
        self.weights = dict(named(self.main, self.mtp))
        with torch.no_grad():
            for name, full in initial(workload, depth):
                self.weights[name].copy_(full)
        self.optimizer = MasterWeights(self.weights.values(), workload)

    def backward(self, batch: Batch) -> Tensor:
        ranks, depths = dist.get_world_size(), range(len(self.factors))
        number = [max(int((batch.labels[:, k:] >= 0).sum()), 1) for k in depths]
        factors = [self.factors[k] * (number[k] / number[0] if self.over_t else 1) for k in depths]
        self.losses = torch.zeros(len(number), dtype=torch.float64, device=device())  # [D + 1]
        for micro in cut(batch, self.workload, dist.get_rank(), ranks):
            losses = torch.stack(self._losses(*placed(micro), number))
            (losses * torch.tensor(factors, device=device())).sum().backward()
            self.losses += losses.detach()
        sum_flat([p.grad for p in self.weights.values()], dist.group.WORLD)
        return self.losses[0] * ranks

    def _losses(self, tokens: Tensor, labels: Tensor, number: list[int]) -> list[Tensor]:
        """Each depth's sum of cross-entropies over this micro-batch, divided by the number of all."""
        h = self.main.model(tokens, use_cache=False).last_hidden_state  # [b, s, h]
        found = [self._loss(h, labels, number[0])]
        for k in range(1, len(number)):
            ahead, targets = F.pad(tokens[:, k:], (0, k)), F.pad(labels[:, k:], (0, k), value=IGNORED)  # [b, s]
            positions = torch.arange(k, k + tokens.shape[1], device=tokens.device)[None]  # [1, s]
            cache = MtpCache(config=self.mtp.config)
            h = self.mtp.forward_layer(k - 1, h, positions, cache, input_ids=ahead)
            found.append(self._loss(h, targets, number[k]))
        return found

    def _loss(self, h: Tensor, labels: Tensor, number: int) -> Tensor:
        logits, size = self.mtp._project_to_logits(h), self.workload.model.vocab_size
        loss: Tensor = self.mtp.loss_function(logits, None, size, num_items_in_batch=number, shift_labels=labels)
        return loss

    def update(self) -> None:
        clip([p.grad for p in self.weights.values() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()

    def observe(self) -> Mapping[str, float]:
        dist.all_reduce(self.losses)
        return {f"mtp_{k}": loss for k, loss in enumerate(self.losses.tolist()) if k}

    def gradients(self) -> Mapping[str, Tensor]:
        return {n: p.grad.cpu() for n, p in self.weights.items() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: m.detach().cpu() for n, m in zip(self.weights, self.optimizer.masters, strict=True)}


def build(
    workload: Workload,
    topology: Topology,
    depth: int,
    weight: float,
    over_t: bool = False,
    sequence_parallel: bool = False,
    **_: Any,
) -> Drafting:
    if topology.world_size != topology.dp:
        raise Unsupported("Transformers' MtpModel has no plan for tensor or context parallelism")
    return Drafting(workload, depth, weight, over_t)
