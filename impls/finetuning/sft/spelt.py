"""The tokens of a conversation of a file, and those learnt, stated a second time: by texts and their characters.

The template writes a text, which the tokenizer splits; answers that the template marks are spans of characters.
"""

from typing import Any

from harness.spec.chat import Chat
from harness.spec.conversations import Conversation


def same(prompt: list[int], whole: list[int]) -> int:
    """The number of tokens until the first difference."""
    return next((i for i, token in enumerate(prompt) if whole[i : i + 1] != [token]), len(prompt))


def spelt(chat: Chat, conversation: Conversation, every: bool) -> list[tuple[int, bool]]:
    if not conversation.messages:
        end = chat.special["eos_token"]
        texts = [conversation.prompt, conversation.prompt + conversation.completion.removesuffix(end) + end]
        prompt, whole = (chat.tokenizer.encode(text).ids for text in texts)
        start = same(prompt, whole)
        return [(token, place >= start) for place, token in enumerate(whole)]

    def split(text: str) -> Any:
        return chat.tokenizer.encode(text, add_special_tokens=False)

    messages = conversation.messages
    text, spans = chat.written(messages)
    whole = split(text)
    if every and spans:
        inside = [any(a < end and start < b for a, b in spans) for start, end in whole.offsets]
        return list(zip(whole.ids, inside, strict=True))
    learnt = [False] * len(whole.ids)
    for place, message in enumerate(messages):
        if message["role"] == "assistant" and (every or place == len(messages) - 1):
            start = same(split(chat.written(messages[:place], asks=True)[0]).ids, whole.ids)
            end = len(split(chat.written(messages[: place + 1])[0]).ids)
            learnt[start:end] = [True] * (end - start)
    return list(zip(whole.ids, learnt, strict=True))
