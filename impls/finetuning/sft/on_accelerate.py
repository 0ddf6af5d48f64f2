"""Accelerate with DeepSpeed's ZeRO-3: its own preparation and backward(), around Transformers' model and its loss."""

import json
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor
from transformers import AutoTokenizer, DataCollatorForSeq2Seq
from transformers.integrations import unset_hf_deepspeed_config

from harness.spec import Topology, Workload
from impls.common.mesh import device
from impls.common.optimizer import optimizer
from impls.engines.deepspeed.engine import configuration, safe_get_full_fp32_param, safe_get_full_grad
from impls.engines.deepspeed.zero import section
from impls.engines.hugging_face import decoder, tokenizer
from impls.finetuning.sft.chat import Padded
from impls.finetuning.sft.data import Example


class Accelerated:
    """Accelerate sets the boundary of accumulation, and steps in the backward pass of the last micro-batch; that step
    is taken in ``update()``, so that gradients can be read before it."""

    def __init__(self, workload: Workload, topology: Topology) -> None:
        self.workload, self.ranks = workload, topology.dp
        # Whole, so that it can be given the common start: where Transformers knows of ZeRO-3, it divides each weight.
        unset_hf_deepspeed_config()
        model = decoder(workload, "sdpa")
        config = configuration(workload, topology, section(workload, 3))
        self.configuration = json.dumps(config)
        self.accelerator = Accelerator(
            gradient_accumulation_steps=workload.micro_batches,
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config),
            # Without a backend it would find no distributed run on a CPU.
            kwargs_handlers=[InitProcessGroupKwargs(backend=dist.get_backend())],
        )
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            raise RuntimeError(f"Accelerate chose {self.accelerator.distributed_type}, not DeepSpeed")
        self.names = dict(model.named_parameters())
        self.padded = Padded(workload, topology.dp, AutoTokenizer.from_pretrained, tokenizer, DataCollatorForSeq2Seq)
        self.model, _ = self.accelerator.prepare(model, optimizer(model.parameters(), workload))
        self.step, self.model.step = self.model.step, lambda: None

    def backward(self, batch: Sequence[Example]) -> Tensor:
        micro_batches, number = self.padded.micro_batches(batch)
        total = torch.zeros((), dtype=torch.float64, device=device())
        for index, sample in enumerate(micro_batches):
            self.accelerator.gradient_state._set_sync_gradients(index == len(micro_batches) - 1)
            # DeepSpeed takes the mean over ranks, and over micro-batches.
            loss = self.model(**sample, num_items_in_batch=number).loss * self.ranks
            self.accelerator.backward(loss * len(micro_batches))
            total += loss.detach()
        return total

    def update(self) -> None:
        self.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: safe_get_full_grad(parameter).cpu() for name, parameter in self.names.items()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: safe_get_full_fp32_param(parameter).detach().cpu() for name, parameter in self.names.items()}


def build(workload: Workload, topology: Topology, sharded: bool = True) -> Accelerated:
    return Accelerated(workload, topology)
