"""Transformers' Trainer with its own loss and num_items_in_batch. Its tokenizer renders and truncates, and its
collators pad or flatten."""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import Tensor
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, DataCollatorWithFlattening, Trainer, TrainingArguments
from transformers.integrations.liger import apply_liger_kernel

from harness.spec import Topology, Unsupported, Workload
from impls.common.mesh import device
from impls.engines.hugging_face import QUIET, Stepped, decoder, tokenizer
from impls.finetuning.sft.chat import marked, opened, row
from impls.finetuning.sft.data import Example


class Masked(DataCollatorWithFlattening):
    """With the mask of ones that a tokenizer gives to every text."""

    def __call__(self, *args: Any, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().__call__(*args, **options)
        return {**found, "attention_mask": torch.ones_like(found["input_ids"])}


class HuggingFace(Stepped):
    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        every: bool = False,
        packing: str = "",
        attention: str = "sdpa",
        smoothing: float = 0.0,
        keep: str = "start",
        saved: bool = False,
        liger: bool = False,
        masked: bool = False,
    ) -> None:
        if packing == "rows":
            raise Unsupported("Transformers' Trainer packs no rows")
        self.ranks, self.every = topology.dp, every
        transformers.logging.set_verbosity_error()
        side = "left" if keep == "end" else "right"
        self.chat, example = opened(workload, AutoTokenizer.from_pretrained, tokenizer)
        if every and not marked(example):
            raise Unsupported("Transformers knows no answers of a template without {% generation %}")
        self.chat.truncation_side = side
        model = decoder(workload, attention, **({"pad_token_id": self.chat.pad_token_id} if saved else {}))
        flattening = Masked() if masked else DataCollatorWithFlattening()
        collator = flattening if packing else DataCollatorForSeq2Seq(self.chat)
        settings: dict[str, Any] = {
            "label_smoothing_factor": smoothing,
            "use_liger_kernel": liger,
            "gradient_accumulation_steps": workload.micro_batches,
            "per_device_train_batch_size": workload.batch_size // topology.dp // workload.micro_batches,
        }
        arguments = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        self.configuration = f"{type(collator).__name__}, TrainingArguments({arguments})"
        with tempfile.TemporaryDirectory() as folder:
            config = TrainingArguments(folder, use_cpu=device().type == "cpu", **QUIET, **settings)
            trainer = Trainer(model, config, data_collator=collator, processing_class=self.chat)
        if liger:  # as train() does
            apply_liger_kernel(trainer.model, trainer.args.liger_kernel_config)
        super().__init__(workload, trainer)

    def row(self, example: Example) -> dict[str, Any]:
        found = row(self.chat, example, self.every, self.workload.sequence_length)
        # Flattened rows have no mask: with one, Transformers does not look for documents in the positions.
        return found if self.flattens else {**found, "attention_mask": [1] * len(found["input_ids"])}

    @property
    def flattens(self) -> bool:
        return isinstance(self.trainer.data_collator, DataCollatorWithFlattening)

    def backward(self, batch: Sequence[Example]) -> Tensor:
        share = len(batch) // self.ranks
        own = batch[dist.get_rank() * share : (dist.get_rank() + 1) * share]
        return self.step([self.row(example) for example in own])


def build(workload: Workload, topology: Topology, **variant: Any) -> HuggingFace:
    return HuggingFace(workload, topology, **variant)


def build_liger(workload: Workload, topology: Topology, **variant: Any) -> HuggingFace:
    """The same with Liger's kernels, and its head fused with the cross-entropy."""
    return HuggingFace(workload, topology, liger=True, **variant)


def build_masked(workload: Workload, topology: Topology, **variant: Any) -> HuggingFace:
    """The same with an attention mask of ones beside the positions of flattened rows."""
    return HuggingFace(workload, topology, masked=True, **variant)
