"""The topic's template as Hugging Face users have it, in Jinja, and conversations as texts.

The word of token 17 is "w17", so that texts and tokens are the same. The padding token is the end, as in the topic.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Workload
from harness.spec.chat import Chat
from harness.spec.conversations import conversations
from harness.spec.text import tokenizer_file
from impls.common.data import IGNORED
from impls.common.mesh import moved
from impls.finetuning.sft.data import WORDS, Example, Turn
from impls.finetuning.sft.given import common, joined

SPECIAL = ("<bos>", "<end>", "<user>", "<assistant>")  # by their tokens
TEMPLATE = """\
{{ bos_token }}{% for message in messages %}\
{% if message.role == 'assistant' %}<assistant>{% generation %}{{ message.content + '<end>' }}{% endgeneration %}\
{% else %}<user>{{ message.content + '<end>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}<assistant>{% endif %}"""


def vocabulary(size: int) -> dict[str, int]:
    names = [*SPECIAL, *(f"w{token}" for token in range(WORDS, size))]
    return {name: token for token, name in enumerate(names)}


# The arguments of a tokenizer beside its vocabulary.
CHAT: dict[str, Any] = {
    "bos_token": "<bos>",
    "eos_token": "<end>",
    "pad_token": "<end>",
    "additional_special_tokens": list(SPECIAL[2:]),
    "chat_template": TEMPLATE,
}


def messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": role, "content": " ".join(f"w{word}" for word in words)} for role, words in turns]


def opened(workload: Workload, load: Callable[[str], Any], make: Callable[..., Any]) -> tuple[Any, Example]:
    """Transformers' tokenizer and the first example. ``load`` opens the tokenizer of a folder, as users do; ``make``
    makes one for drawn conversations."""
    if not workload.data:
        return make(vocabulary(workload.model.vocab_size), **CHAT), Example([("user", [5]), ("assistant", [6])])
    own = Chat(tokenizer_file(workload).parent)
    chat = load(str(own.folder))
    chat.pad_token = chat.pad_token or chat.eos_token
    return chat, Example([], None, next(conversations(Path(workload.data))), own)


def marked(example: Example) -> bool:
    """Whether the template, if it is needed, tells the answers."""
    return not example.given or not example.given.messages or example.chat.marks


def row(chat: Any, example: Example, every: bool, length: int) -> dict[str, list[int]]:
    """The tokens of a conversation by Transformers' tokenizer ``chat``, at most ``length``; the labels of its answers,
    or of the last one."""
    limit = {"truncation": True, "max_length": length}

    def after(prompt: list[int], whole: list[int], kept: int) -> list[bool]:
        cut = len(whole) - kept if chat.truncation_side == "left" else 0
        return [place >= common(prompt, whole) - cut for place in range(kept)]

    if example.given and not example.given.messages:
        whole, tokens = chat(text := joined(example.given, chat.eos_token)), chat(text, **limit)["input_ids"]
        learnt = after(chat(example.given.prompt)["input_ids"], whole["input_ids"], len(tokens))
    else:
        given = list(example.given.messages) if example.given else messages(example.turns)
        options: dict[str, Any] = {"tokenize": True, "return_dict": True}
        found = chat.apply_chat_template(given, return_assistant_tokens_mask=every, **limit, **options)
        tokens, learnt = found["input_ids"], found.get("assistant_masks")
        if not every:
            whole = chat.apply_chat_template(given, **options)["input_ids"]
            prompt = chat.apply_chat_template(given[:-1], add_generation_prompt=True, **options)["input_ids"]
            learnt = after(prompt, whole, len(tokens))
    labels = [token if own else IGNORED for token, own in zip(tokens, learnt, strict=True)]
    return {"input_ids": tokens, "labels": labels}


class Padded:
    """This rank's micro-batches of padded rows for Transformers' models, as a user's script makes them. ``collator``:
    the class DataCollatorForSeq2Seq."""

    def __init__(self, workload: Workload, ranks: int, load: Any, make: Any, collator: Any) -> None:
        self.workload, self.ranks = workload, ranks
        self.chat, _ = opened(workload, load, make)
        self.collator = collator(self.chat)

    def micro_batches(self, batch: Sequence[Example]) -> tuple[list[dict[str, Tensor]], Tensor]:
        """With the number of learnt tokens on all ranks."""
        share, k = len(batch) // self.ranks, self.workload.micro_batches
        own = batch[dist.get_rank() * share : (dist.get_rank() + 1) * share]
        rows = [row(self.chat, example, False, self.workload.sequence_length) for example in own]
        rows = [{**each, "attention_mask": [1] * len(each["input_ids"])} for each in rows]
        samples = [self.collator(rows[start : start + share // k]) for start in range(0, share, share // k)]
        number = moved(torch.stack([(sample["labels"][:, 1:] != IGNORED).sum() for sample in samples]).sum())
        dist.all_reduce(number)
        return [{name: moved(tensor) for name, tensor in sample.items()} for sample in samples], number
