"""Conversations to train on, in the forms of public data sets.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}           ShareGPT
    {"prompt": "…", "completion": "…"}, both texts, or both lists of messages
    {"instruction": "…", "input": "…", "output": "…"}, of which input may be absent, null or empty      Alpaca

All become messages, but a prompt and a completion that are texts: these are joined as they are, without a template. A
question with an input is the instruction, a blank line and the input. Roles are system, user and assistant; the last
message is an answer. Texts may be empty: the end of an empty answer is still learnt.
"""

import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness.spec import records
from harness.spec.files import InputError, readable

# The fields of each form, and those that may be absent. A record is of the first form that it has the fields of.
FORMS = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt and completion": ("prompt", "completion"),
    "instruction and output": ("instruction", "output"),
}
OPTIONAL = {"instruction and output": ("input",)}
ROLES = ("system", "user", "assistant")
SHARE_GPT = {"human": "user", "gpt": "assistant"}  # its names; the others are the usual ones

Message = Mapping[str, Any]


class Conversation(NamedTuple):
    """``messages``, of which the last is an answer; or a ``prompt`` and its ``completion``, without any messages.
    ``place`` names the file and the line."""

    place: str
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    completion: str = ""


def conversations(data: Path) -> Iterator[Conversation]:
    """Raises InputError, with the line or the row, if ``data`` holds anything else, or several forms."""
    name = readable(data).name.lower()
    if not name.endswith(records.FORMATS):
        known = f"{', '.join(records.FORMATS[:-1])} or {records.FORMATS[-1]}"
        raise InputError(f"data {data} must be a {known} file: this topic trains on conversations")
    first = ""
    for place, record in records.records(data, lambda names: _columns(data, names)):
        if not isinstance(record, dict):
            raise InputError(f"{place} is no conversation; it is {reprlib.repr(record)}")
        form = _form(place, list(record))
        first = first or form
        if form != first:
            raise InputError(f"{place} holds {form}, but the lines before it {first}")
        yield _read(place, form, record)


def _form(place: str, fields: list[str]) -> str:
    for form, needed in FORMS.items():
        if set(needed) <= set(fields):
            return form
    raise InputError(f"{place} is no conversation, which has {', or '.join(FORMS)}; its fields are {', '.join(fields)}")


def _columns(data: Path, names: list[str]) -> list[str]:
    form = _form(str(data), names)
    return [*FORMS[form], *(name for name in OPTIONAL.get(form, ()) if name in names)]


def _read(place: str, form: str, record: Mapping[str, Any]) -> Conversation:
    if form == "instruction and output":
        asked, given = _text(place, record, "instruction"), record.get("input")
        question = f"{asked}\n\n{_text(place, record, 'input')}" if given is not None and given != "" else asked
        answer = _text(place, record, "output")
        return Conversation(place, ({"role": "user", "content": question}, {"role": "assistant", "content": answer}))
    if form == "prompt and completion":
        prompt, completion = record["prompt"], record["completion"]
        if not isinstance(prompt, list):
            return Conversation(place, (), _text(place, record, "prompt"), _text(place, record, "completion"))
        if not isinstance(completion, list) or len(completion) != 1:
            raise InputError(f"{place}: the completion of a prompt of messages must be a list of one message")
        return Conversation(place, _messages(place, [*prompt, *completion]))
    return Conversation(place, _messages(place, record[form]))


def _messages(place: str, given: Any) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise InputError(f"{place} must hold a list of messages, not {reprlib.repr(given)}")
    found = tuple(_message(f"{place}, message {number}", each) for number, each in enumerate(given, 1))
    if (last := found[-1]["role"]) != "assistant":
        raise InputError(f"{place} ends with a message of the {last}; the last one must be the assistant's")
    if len(found) == 1:
        raise InputError(f"{place} has an answer alone, and no message before it")
    return found


def _message(place: str, given: Any) -> Message:
    """With ``role`` and ``content``, and whatever else it has for the template; a table holds null for absent
    fields."""
    if not isinstance(given, dict):
        raise InputError(f"{place} is {reprlib.repr(given)}, and not a role and its content")
    who, what = ("from", "value") if "from" in given else ("role", "content")
    if who not in given or what not in given:
        raise InputError(f"{place} has no {who} and {what}; its fields are {', '.join(given)}")
    role = given[who]
    role = SHARE_GPT.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise InputError(f"{place} has the unknown role {reprlib.repr(given[who])}; known: {', '.join(ROLES)}")
    rest = {name: value for name, value in given.items() if name not in (who, what) and value is not None}
    return {"role": role, "content": _text(place, given, what), **rest}


def _text(place: str, record: Mapping[str, Any], field: str) -> str:
    text = record[field]
    if not isinstance(text, str):
        raise InputError(f'{place}: the field "{field}" must hold a string, not {reprlib.repr(text)}')
    return records.encodable(place, field, text)
