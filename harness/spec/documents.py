"""The documents of the user's file: its texts, or its conversations as the tokenizer's chat template writes them."""

from collections.abc import Iterator
from pathlib import Path

from harness.spec import records
from harness.spec.chat import Chat, folder, joined, written
from harness.spec.conversations import FORMS, conversations
from harness.spec.text import grouped, pieces


def documents(data: Path, tokenizer: Path) -> Iterator[list[tuple[str, bool]]]:
    """As :func:`harness.spec.text.pieces`; ``tokenizer`` is the tokenizer.json. A prompt and its completion that are
    texts are joined without a template."""
    return grouped(_written(data, Chat(folder(tokenizer)))) if _conversational(data) else pieces(data)


def _conversational(data: Path) -> bool:
    """Whether the records have no field "text" and are of a form of conversations."""
    if not data.name.lower().endswith(records.FORMATS) or not data.is_file():
        return False
    fields = next((list(record) for _, record in records.records(data, _all) if isinstance(record, dict)), [])
    return "text" not in fields and any(set(needed) <= set(fields) for needed in FORMS.values())


def _all(names: list[str]) -> list[str]:
    return names


def _written(data: Path, chat: Chat) -> Iterator[tuple[str, bool]]:
    for each in conversations(data):
        if each.messages:
            yield written(chat, each, len(each.messages))[0], True
        else:
            yield joined(each, chat.special["eos_token"]), True
