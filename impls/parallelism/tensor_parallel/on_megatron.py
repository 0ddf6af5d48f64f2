"""Megatron-Core's own GPTModel (local layer specification: no Transformer Engine)."""

import torch
from torch import Tensor

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
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
            losses = model(tokens, positions, None, labels=labels.clamp(min=0), runtime_gather_output=True)
            total += mean(losses, labels) * part * dp
        model.train()
        return total


def build(workload: Workload, topology: Topology, validated: bool = False) -> Gpt:
    return Validated(workload, topology) if validated else Gpt(workload, topology)
