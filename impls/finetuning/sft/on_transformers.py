"""Transformers' Trainer with its own loss and num_items_in_batch. Its tokenizer renders and truncates, and its
collators pad or flatten."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
import transformers
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, Trainer, TrainingArguments

from harness.spec import Topology, Unsupported, Workload
from harness.spec.conversations import conversations
from impls.common.data import IGNORED
from impls.common.mesh import device
from impls.engines.hugging_face import QUIET, Stepped, qwen3, tokenizer
from impls.finetuning.sft.chat import CHAT, messages, vocabulary
from impls.finetuning.sft.data import Example
from impls.finetuning.sft.given import common, joined, marks_answers
from impls.finetuning.sft.given import tokenizer as own_tokenizer


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
        self.chat: Any = tokenizer(vocabulary(workload.model.vocab_size), **CHAT)
        if workload.data:
            self.chat, first = own_tokenizer(workload), next(conversations(Path(workload.data)))
            if every and first.messages and not marks_answers(self.chat.get_chat_template()):
                raise Unsupported("Transformers knows no answers of a template without {% generation %}")
        self.chat.truncation_side = side
        model = qwen3(workload, attention, **({"pad_token_id": self.chat.pad_token_id} if saved else {}))
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

    def row(self, example: Example) -> dict[str, Any]:
        """The tokens of a conversation; the labels of its answers, or of the last one."""
        limit = {"truncation": True, "max_length": self.workload.sequence_length}
        if example.given and not example.given.messages:
            whole, tokens = self.chat(text := joined(self.chat, example.given)), self.chat(text, **limit)["input_ids"]
            learnt = self.after(self.chat(example.given.prompt)["input_ids"], whole["input_ids"], len(tokens))
        else:
            given = list(example.given.messages) if example.given else messages(example.turns)
            options = {"tokenize": True, "return_dict": True}
            found = self.chat.apply_chat_template(given, return_assistant_tokens_mask=self.every, **limit, **options)
            tokens, learnt = found["input_ids"], found.get("assistant_masks")
            if not self.every:
                whole = self.chat.apply_chat_template(given, **options)["input_ids"]
                prompt = self.chat.apply_chat_template(given[:-1], add_generation_prompt=True, **options)["input_ids"]
                learnt = self.after(prompt, whole, len(tokens))
        labels = [token if own else IGNORED for token, own in zip(tokens, learnt, strict=True)]
        row = {"input_ids": tokens, "labels": labels}
        # Flattened rows have no mask: with one, documents would not be looked for in the positions.
        return row if self.flattens else {**row, "attention_mask": [1] * len(tokens)}

    def after(self, prompt: list[int], whole: list[int], kept: int) -> list[bool]:
        """The tokens after the prompt, of those that truncation keeps."""
        cut = len(whole) - kept if self.chat.truncation_side == "left" else 0
        return [place >= common(prompt, whole) - cut for place in range(kept)]

    @property
    def flattens(self) -> bool:
        return isinstance(self.trainer.data_collator, DataCollatorWithFlattening)

    def backward(self, batch: Sequence[Example]) -> Tensor:
        share = len(batch) // self.ranks
        own = batch[dist.get_rank() * share : (dist.get_rank() + 1) * share]
        return self.step([self.row(example) for example in own])


def build(workload: Workload, topology: Topology, **variant: Any) -> HuggingFace:
    return HuggingFace(workload, topology, **variant)
