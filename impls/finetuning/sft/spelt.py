"""The tokens of a conversation of a file, and those learnt, stated a second time: by texts and their characters.

The template writes a text, which the tokenizer splits; answers that the template marks are spans of characters.
"""

from typing import Any

from harness.spec.conversations import Conversation


def same(prompt: list[int], whole: list[int]) -> int:
    """The number of tokens until the first difference."""
    return next((i for i, token in enumerate(prompt) if whole[i : i + 1] != [token]), len(prompt))


def spelt(chat: Any, conversation: Conversation, every: bool) -> list[tuple[int, bool]]:
    from transformers.utils.chat_template_utils import render_jinja_template

    if not conversation.messages:
        end = chat.eos_token
        texts = [conversation.prompt, conversation.prompt + conversation.completion.removesuffix(end) + end]
        prompt, whole = (chat.backend_tokenizer.encode(text).ids for text in texts)
        start = same(prompt, whole)
        return [(token, place >= start) for place, token in enumerate(whole)]

    def written(count: int, asks: bool = False, marks: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The first messages, the prompt of an answer after them, and the spans of the answers."""
        texts, spans = render_jinja_template(
            [list(conversation.messages[:count])],
            chat_template=chat.get_chat_template(),
            add_generation_prompt=asks,
            return_assistant_tokens_mask=marks,
            **chat.special_tokens_map,
        )
        return texts[0], spans[0] if marks else []

    def split(text: str) -> Any:
        return chat.backend_tokenizer.encode(text, add_special_tokens=False)

    number = len(conversation.messages)
    text, spans = written(number, marks=every)
    whole = split(text)
    if spans:
        inside = [any(a < end and start < b for a, b in spans) for start, end in whole.offsets]
        return list(zip(whole.ids, inside, strict=True))
    learnt = [False] * len(whole.ids)
    for place, message in enumerate(conversation.messages):
        if message["role"] == "assistant" and (every or place == number - 1):
            start = same(split(written(place, asks=True)[0]).ids, whole.ids)
            end = len(split(written(place + 1)[0]).ids)
            learnt[start:end] = [True] * (end - start)
    return list(zip(whole.ids, learnt, strict=True))
