"""Transformers' Trainer with its own loss and num_items_in_batch. Its tokenizer renders and truncates, and its
collators pad or flatten."""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
import transformers
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, Trainer, TrainingArguments

from harness.spec import Topology, Unsupported, Workload
from impls.common.data import IGNORED
from impls.common.mesh import device
from impls.engines.hugging_face import QUIET, Stepped, decoder, tokenizer
from impls.finetuning.sft.chat import CHAT, messages, vocabulary
from impls.finetuning.sft.data import END, Example, Turn


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
    ) -> None:
        if packing == "rows":
            raise Unsupported("Transformers' Trainer packs no rows")
        self.ranks, self.every = topology.dp, every
        transformers.logging.set_verbosity_error()
        side = "left" if keep == "end" else "right"
        self.chat = tokenizer(vocabulary(workload.model.vocab_size), truncation_side=side, **CHAT)
        model = decoder(workload, attention, **({"pad_token_id": END} if saved else {}))
        collator = DataCollatorWithFlattening() if packing else DataCollatorForSeq2Seq(self.chat)
        settings: dict[str, Any] = {
            "label_smoothing_factor": smoothing,
            "gradient_accumulation_steps": workload.micro_batches,
            "per_device_train_batch_size": workload.batch_size // topology.dp // workload.micro_batches,
        }
        arguments = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        self.configuration = f"{type(collator).__name__}, TrainingArguments({arguments})"
        with tempfile.TemporaryDirectory() as folder:
            config = TrainingArguments(folder, use_cpu=device().type == "cpu", **QUIET, **settings)
            trainer = Trainer(model, config, data_collator=collator, processing_class=self.chat)
        super().__init__(workload, trainer)

    def row(self, turns: Sequence[Turn]) -> dict[str, Any]:
        """The tokens of a conversation; the labels of its answers, or of the last one."""
        limit = {"truncation": True, "max_length": self.workload.sequence_length}
        given, options = messages(turns), {"tokenize": True, "return_dict": True}
        found = self.chat.apply_chat_template(given, return_assistant_tokens_mask=True, **limit, **options)
        tokens, learnt = found["input_ids"], found["assistant_masks"]
        if not self.every:
            whole = self.chat.apply_chat_template(given, **options)["input_ids"]
            prompt = self.chat.apply_chat_template(given[:-1], add_generation_prompt=True, **options)["input_ids"]
            cut = len(whole) - len(tokens) if self.chat.truncation_side == "left" else 0
            learnt = [place >= len(prompt) - cut for place in range(len(tokens))]
        labels = [token if own else IGNORED for token, own in zip(tokens, learnt, strict=True)]
        row = {"input_ids": tokens, "labels": labels}
        # Flattened rows have no mask: with one, documents would not be looked for in the positions.
        return row if self.flattens else {**row, "attention_mask": [1] * len(tokens)}

    @property
    def flattens(self) -> bool:
        return isinstance(self.trainer.data_collator, DataCollatorWithFlattening)

    def backward(self, batch: Sequence[Example]) -> Tensor:
        share = len(batch) // self.ranks
        own = batch[dist.get_rank() * share : (dist.get_rank() + 1) * share]
        return self.step([self.row(example.turns) for example in own])


def build(workload: Workload, topology: Topology, **variant: Any) -> HuggingFace:
    return HuggingFace(workload, topology, **variant)
