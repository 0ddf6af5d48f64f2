"""A Hugging Face tokenizer folder without Transformers: its tokens, and its chat template in Jinja.

The engines have Transformers do the same, so that what they learn is compared with a second reading of the folder.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from harness.spec.conversations import Conversation, Message
from harness.spec.files import InputError, one_line
from harness.spec.text import chat_template, open_tokenizer, tokenizer_file, tokenizer_settings
from harness.spec.workload import Workload

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
BEGIN, END = "\ufdd0", "\ufdd1"  # around an answer while a template is rendered; no characters, so in no text


class Generation(Extension):
    """{% generation %}, by which a template marks an answer."""

    tags = {"generation"}  # noqa: RUF012  an attribute of the instance in Jinja

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{BEGIN}{caller()}{END}"


def _refused(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as Transformers sets it up for templates."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = lambda value, **options: json.dumps(value, **({"ensure_ascii": False} | options))
    made.globals |= {"raise_exception": _refused, "strftime_now": lambda text: datetime.now().strftime(text)}
    return made


class Chat:
    """``special``: the names of special tokens, such as eos_token, and the tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tokenizer = folder, open_tokenizer(folder / "tokenizer.json")
        settings = tokenizer_settings(folder)
        named = {name: settings[name] for name in SPECIAL if settings.get(name)}
        self.special = {name: token["content"] if isinstance(token, dict) else token for name, token in named.items()}
        # Those that the vocabulary has not are new tokens.
        self.tokenizer.add_special_tokens([*self.special.values()])
        if "eos_token" not in self.special:
            raise InputError(f"the tokenizer in {folder} names no eos_token")
        self.source = chat_template(folder)
        self.marks = "{% generation" in self.source.replace("{%-", "{%")  # whether the template tells the answers
        try:
            self.template = environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template in {folder} is no Jinja: {error}") from error

    def token(self, name: str) -> int:
        return int(self.tokenizer.token_to_id(self.special[name]))

    def written(self, messages: Sequence[Message], asks: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The text of messages, followed by the prompt of an answer if ``asks``; and its spans of characters that are
        answers."""
        if not self.source:
            raise InputError(f"the tokenizer in {self.folder} has no chat template")
        text = self.template.render(messages=list(messages), add_generation_prompt=asks, **self.special)
        pieces, spans = text.split(BEGIN), []
        length = len(pieces[0])
        for piece in pieces[1:]:
            answer, _, rest = piece.partition(END)
            spans.append((length, length + len(answer)))
            length += len(answer) + len(rest)
        return "".join(piece.replace(END, "", 1) for piece in pieces), spans


def folder(tokenizer: Path) -> Path:
    """The folder of a tokenizer.json, which is read whole. Raises InputError if the file has another name."""
    if tokenizer.name != "tokenizer.json":
        raise InputError(f"{tokenizer} must be called tokenizer.json: conversations need the folder, with its template")
    return tokenizer.parent


def chat(workload: Workload) -> Chat:
    """The tokenizer of a workload's data. Raises InputError if its padding has no place in the model."""
    found = Chat(tokenizer_file(workload).parent)
    pad = found.token("pad_token" if "pad_token" in found.special else "eos_token")
    if pad >= workload.model.vocab_size:
        raise InputError(
            f"the tokenizer in {found.folder} pads with token {pad}, but model.vocab_size is "
            f"{workload.model.vocab_size}"
        )
    return found


def written(
    chat: Chat, conversation: Conversation, count: int, asks: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """The text of the first messages, and the spans of its answers."""
    try:
        return chat.written(conversation.messages[:count], asks)
    except jinja2.TemplateError as error:
        raise InputError(f"{conversation.place}: the tokenizer's template refuses it: {one_line(error)}") from error


def joined(conversation: Conversation, end: str) -> str:
    """A prompt and its completion, with the end of text."""
    return conversation.prompt + conversation.completion + ("" if conversation.completion.endswith(end) else end)
