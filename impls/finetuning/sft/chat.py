"""The topic's template as Hugging Face users have it, in Jinja, and conversations as texts.

The word of token 17 is "w17", so that texts and tokens are the same. The padding token is the end, as in the topic.
"""

from collections.abc import Sequence
from typing import Any

from impls.finetuning.sft.data import WORDS, Turn

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
