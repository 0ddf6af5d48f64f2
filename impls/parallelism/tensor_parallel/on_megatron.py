"""Megatron-Core's own GPTModel (local layer specification: no Transformer Engine)."""

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, vocab_parallel_cross_entropy
from torch import Tensor, nn

from harness.spec import Batch, Topology, Workload
from impls.common.decoder import mean
from impls.common.mesh import device, share
from impls.engines.megatron.gpt import Gpt


class Validated(Gpt):
    """A step's loss is that of an evaluation loop over its batch, before the training pass: GPTModel's own loss, while
    it gathers its logits, as it does if it is built with ``parallel_output=False``."""

    def backward(self, batch: Batch) -> Tensor:
        loss = self.validate(batch)
        super().backward(batch)
        return loss

    @torch.no_grad()
    def validate(self, batch: Batch) -> Tensor:
        (model,) = self.parts
        model.eval()
        total, dp = torch.zeros((), device=device()), self.topology.dp
        for (tokens, labels), part in share(batch, self.workload, self.dp_rank, dp):
            losses = self.forward(model, tokens, labels=labels.clamp(min=0), runtime_gather_output=True)
            total += mean(losses, labels) * part * dp
        model.train()
        return total


class OwnHead(Gpt):
    """The head and its loss are the user's, on activations [b, s, h], as in trainers that fuse the two: they take the
    decoder's output, and have Megatron's operator sum its gradient over ranks."""

    def losses(self, model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
        gpt = model.module
        gpt.post_process = False
        x = self.forward(model, tokens)  # [s, b, h]
        gpt.post_process = True
        x = copy_to_tensor_model_parallel_region(x).transpose(0, 1).contiguous()  # [b, s, h]
        tied = gpt.share_embeddings_and_output_weights
        weight = gpt.shared_embedding_or_output_weight() if tied else gpt.output_layer.weight  # [v, h]
        return vocab_parallel_cross_entropy(F.linear(x, weight), labels.clamp(min=0))


def build(workload: Workload, topology: Topology, validated: bool = False, own_head: bool = False) -> Gpt:
    kind = Validated if validated else OwnHead if own_head else Gpt
    return kind(workload, topology)
