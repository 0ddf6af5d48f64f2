"""Pipelines that one process drives: the first rank is that process, and the others wait."""

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.cuts import split
from impls.common.mesh import device
from impls.common.optimizer import MasterWeights, clip
from impls.common.stages import Block
from impls.common.weights import build_model


class OneProcess:
    """``pipe(modules, balance, devices=, chunks=, checkpoint=)``: torchgpipe's GPipe or FairScale's Pipe."""

    fallback = "one process drives all stages, here on the first rank's device; the other ranks wait"

    def __init__(self, workload: Workload, topology: Topology, pipe: Callable[..., nn.Module]) -> None:
        if topology.dp > 1:
            raise Unsupported("it has no data parallelism of its own")
        if workload.model.tie_word_embeddings:
            raise Unsupported("it takes no parameter that two layers have")
        self.workload, self.drives = workload, dist.get_rank() == 0
        if not self.drives:
            return
        self.model = build_model(workload)
        body, config = self.model.model, workload.model
        blocks = [Block(config, layer) for layer in body.layers]
        balance = [len(layers) for layers in split(len(blocks), topology.pp)]
        balance[0], balance[-1] = balance[0] + 1, balance[-1] + 2
        self.pipe = pipe(
            nn.Sequential(body.embed_tokens, *blocks, body.norm, self.model.lm_head),
            balance,
            devices=[device()] * topology.pp,
            chunks=workload.micro_batches,
            checkpoint="never",  # by default all micro-batches but the last are computed again
        )
        self.optimizer = MasterWeights(self.model.parameters(), workload)

    def backward(self, batch: Batch) -> Tensor:
        loss = torch.zeros((), dtype=torch.float64, device=device())
        if self.drives:
            logits = self.pipe(batch.inputs.to(device()))
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            mean = F.cross_entropy(logits.flatten(0, 1), batch.labels.to(device()).flatten())
            mean.backward()
            loss += mean.detach()
        dist.broadcast(loss, src=0)
        return loss

    def update(self) -> None:
        if self.drives:
            clip([p.grad for p in self.model.parameters() if p.grad is not None], self.workload.max_grad_norm)
            self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        if not self.drives:
            return {}
        return {name: p.grad.cpu() for name, p in self.model.named_parameters() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        if not self.drives:
            return {}
        named = zip(self.model.named_parameters(), self.optimizer.masters, strict=True)
        return {name: master.detach().cpu() for (name, _), master in named}
