"""PyTorch's FSDP2, ``fully_shard``, around Transformers' Qwen3 and its loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import AutoTokenizer, DataCollatorForSeq2Seq

from harness.spec import Topology, Workload
from impls.common.mesh import device, mesh
from impls.common.optimizer import optimizer
from impls.common.weights import TORCH_DTYPES
from impls.engines.hugging_face import decoder, tokenizer
from impls.finetuning.sft.chat import Padded
from impls.finetuning.sft.data import Example


class Sharded:
    """The sharded weights are float32 masters, the gathered ones have the workload's precision, as in FSDP2's recipe. A
    unit per layer, and one for the rest."""

    def __init__(self, workload: Workload, topology: Topology) -> None:
        self.workload, self.ranks, narrow = workload, topology.dp, TORCH_DTYPES[workload.dtype]
        wide = "fp32" if workload.element_size < 4 else workload.dtype
        self.model = decoder(workload.with_(dtype=wide), "sdpa")
        policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=narrow)
        options: dict[str, Any] = {"mesh": mesh(topology)["dp"], "mp_policy": policy, "reshard_after_forward": True}
        for layer in self.model.model.layers:
            fully_shard(layer, **options)
        fully_shard(self.model, **options)
        if not isinstance(self.model, FSDPModule):
            raise RuntimeError(f"fully_shard left a {type(self.model).__name__}")
        self.configuration = f"fully_shard(layer), fully_shard(model): reshard_after_forward=True, {narrow} passes"
        self.optimizer = optimizer(self.model.parameters(), workload, fused=workload.optimizer == "adamw")
        self.padded = Padded(workload, topology.dp, AutoTokenizer.from_pretrained, tokenizer, DataCollatorForSeq2Seq)

    def backward(self, batch: Sequence[Example]) -> Tensor:
        samples, number = self.padded.micro_batches(batch)
        total = torch.zeros((), dtype=torch.float64, device=device())
        for sample in samples:
            loss = self.model(**sample, num_items_in_batch=number).loss * self.ranks  # its gradients are means of ranks
            loss.backward()
            total += loss.detach()
        return total

    def update(self) -> None:
        if self.workload.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.workload.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> Mapping[str, Tensor]:
        return {n: p.grad.full_tensor().cpu() for n, p in self.model.named_parameters()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: p.detach().full_tensor().cpu() for n, p in self.model.named_parameters()}


def build(workload: Workload, topology: Topology, sharded: bool = True) -> Sharded:
    return Sharded(workload, topology)
