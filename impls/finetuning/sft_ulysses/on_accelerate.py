"""Arctic Long Sequence Training around Transformers' decoder: DeepSpeed's UlyssesSPAttentionHF, its
UlyssesSPDataLoaderAdapter and its engine, put together by Accelerate's ParallelismConfig.

Each rank brings micro-batches of its own; the neighbours then work on the parts of one after another, and so accumulate
U times as many. The loss is the sum over the labels of a part by the number of all, as num_items_in_batch asks for.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import (
    DeepSpeedSequenceParallelConfig,
    DistributedType,
    InitProcessGroupKwargs,
    ParallelismConfig,
)
from torch import Tensor
from transformers import AutoTokenizer, DataCollatorForSeq2Seq
from transformers.integrations import unset_hf_deepspeed_config

from harness.spec import Topology, Unsupported, Workload
from impls.common.data import IGNORED
from impls.common.features import without
from impls.common.mesh import device, moved
from impls.common.optimizer import optimizer
from impls.engines.deepspeed.engine import configuration, safe_get_full_fp32_param, safe_get_full_grad
from impls.engines.deepspeed.zero import section
from impls.engines.hugging_face import decoder, tokenizer
from impls.finetuning.sft.chat import opened, row
from impls.finetuning.sft.data import Example
from impls.parallelism.context_parallel.ulysses import head_shares


class Ulysses:
    def __init__(self, workload: Workload, topology: Topology) -> None:
        without(workload, "DeepSpeed's Ulysses with SDPA, which it gives no mask,", "sliding_window")
        head_shares(workload.model.num_attention_heads, workload.model.num_key_value_heads, topology.cp)
        self.workload, self.topology = workload, topology
        if workload.micro_batches % topology.cp:
            raise Unsupported(
                f"{topology.cp} neighbours cannot bring as many of {workload.micro_batches} micro-batches"
            )
        unset_hf_deepspeed_config()
        model = decoder(workload, "sdpa")
        config = configuration(workload, topology, section(workload, 1))
        self.configuration = f"ParallelismConfig(sp_size={topology.cp}), sdpa; {json.dumps(config)}"
        self.accelerator = Accelerator(
            gradient_accumulation_steps=workload.micro_batches,
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config),
            parallelism_config=ParallelismConfig(
                sp_backend="deepspeed",
                sp_size=topology.cp,
                dp_replicate_size=topology.dp,
                dp_shard_size=1,
                sp_handler=DeepSpeedSequenceParallelConfig(
                    sp_seq_length_is_variable=True, sp_attn_implementation="sdpa"
                ),
            ),
            # Without a backend it would find no distributed run on a CPU.
            kwargs_handlers=[InitProcessGroupKwargs(backend=dist.get_backend())],
        )
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            raise RuntimeError(f"Accelerate chose {self.accelerator.distributed_type}, not DeepSpeed")
        self.names = dict(model.named_parameters())
        self.chat, _ = opened(workload, AutoTokenizer.from_pretrained, tokenizer)
        # The adapter gathers the neighbours' rows, which gloo does for equal sizes alone.
        self.collator = DataCollatorForSeq2Seq(self.chat, padding="max_length", max_length=workload.sequence_length)
        self.model, _ = self.accelerator.prepare(model, optimizer(model.parameters(), workload))
        self.step, self.model.step = self.model.step, lambda: None

    def samples(self, batch: Sequence[Example]) -> list[dict[str, Tensor]]:
        """The micro-batches that this rank brings, in turn with its neighbours."""
        ranks, k = self.topology.cp, self.workload.micro_batches
        share = len(batch) // self.topology.dp
        replica, place = divmod(dist.get_rank(), ranks)
        own, size, found = batch[replica * share : (replica + 1) * share], share // k, []
        for start in range(place * size, share, ranks * size):
            rows = [row(self.chat, e, False, self.workload.sequence_length) for e in own[start : start + size]]
            sample = dict(self.collator(rows))
            places = torch.arange(sample["input_ids"].shape[1]).expand_as(sample["input_ids"])
            names = ("input_ids", "labels")
            found.append({**{name: sample[name] for name in names}, "position_ids": places.contiguous()})
        return found

    def backward(self, batch: Sequence[Example]) -> Tensor:
        parts = list(self.accelerator.deepspeed_ulysses_dl_adapter(self.samples(batch), self.model))
        number = moved(torch.stack([(part["shift_labels"] != IGNORED).sum() for part in parts]).sum())
        dist.all_reduce(number)
        total = torch.zeros((), dtype=torch.float64, device=device())
        for index, part in enumerate(parts):
            self.accelerator.gradient_state._set_sync_gradients(index == len(parts) - 1)
            # On a CPU the adapter's parts are views with gaps, which Transformers' loss refuses.
            sample: dict[str, Any] = {name: moved(tensor.contiguous()) for name, tensor in part.items()}
            loss = self.model(**sample, labels=sample["shift_labels"], num_items_in_batch=number).loss
            # DeepSpeed takes the mean over replicas, the sum over neighbours, and the mean over micro-batches.
            self.accelerator.backward(loss * self.topology.dp * len(parts))
            total += loss.detach()
        return total * self.topology.world_size

    def update(self) -> None:
        self.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: safe_get_full_grad(parameter).cpu() for name, parameter in self.names.items()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: safe_get_full_fp32_param(parameter).detach().cpu() for name, parameter in self.names.items()}


def build(workload: Workload, topology: Topology) -> Ulysses:
    return Ulysses(workload, topology)
