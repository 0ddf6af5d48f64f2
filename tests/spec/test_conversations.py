"""Conversations in the user's files: every form and format gives the same ones, and each fault is one line with its
place."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.spec import records
from harness.spec.conversations import conversations
from harness.spec.files import InputError

ASKED, ANSWER = "Über 你好 👩‍👩‍👧\n?", "😀"
USER, ASSISTANT = {"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWER}
HUMAN, GPT = {"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWER}
TALKS = [(USER, ASSISTANT), (USER, {"role": "assistant", "content": ""}), (USER, ASSISTANT, USER, ASSISTANT)]


def lines(*given: object) -> bytes:
    return b"".join(json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in given)


def share_gpt(talk: tuple[dict[str, str], ...]) -> dict[str, object]:
    names = {"user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[each["role"]], "value": each["content"]} for each in talk], "id": 1}


def write(path: Path, content: bytes | Callable[[Path], object]) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return path


def table(path: Path) -> None:
    pq.write_table(pa.table({"id": range(3), "messages": [list(talk) for talk in TALKS]}), path, row_group_size=2)


def stream(path: Path) -> None:
    rows = pa.table({"messages": [list(talk) for talk in TALKS]})
    with pa.ipc.new_stream(path, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=2)


MESSAGES = lines(*({"prompt": "unused", "messages": talk} for talk in TALKS))
FORMS: dict[str, bytes | Callable[[Path], object]] = {
    "messages.jsonl": MESSAGES,
    "bom.jsonl": b"\xef\xbb\xbf" + MESSAGES,
    "crlf.jsonl": MESSAGES.replace(b"\n", b"\r\n"),
    "blank.jsonl": b"\n \n" + MESSAGES.replace(b"\n", b"\n\n"),
    "share_gpt.jsonl": lines(*map(share_gpt, TALKS)),
    "usual_names.jsonl": lines(*({"conversations": talk} for talk in TALKS)),
    "split.jsonl": lines(*({"prompt": talk[:-1], "completion": talk[-1:]} for talk in TALKS)),
    "table.parquet": table,
    "stream.arrow": stream,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_messages(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ROWS", 2)
    found = list(conversations(write(tmp_path / name, FORMS[name])))
    assert [each.messages for each in found] == TALKS
    assert len({each.place for each in found}) == len(TALKS)


@pytest.mark.parametrize(("given", "question"), [({"input": "b"}, "a\n\nb"), ({"input": None}, "a"), ({}, "a")])
def test_an_instruction_and_its_input_are_one_question(given: dict[str, object], question: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines({"instruction": "a", "output": ANSWER, **given}))
    (found,) = conversations(path)
    assert found.messages == ({"role": "user", "content": question}, ASSISTANT)


def test_a_prompt_and_a_completion_that_are_texts_stay_texts(tmp_path: Path) -> None:
    (found,) = conversations(write(tmp_path / "a.jsonl", lines({"prompt": ASKED, "completion": ""})))
    assert (found.messages, found.prompt, found.completion) == ((), ASKED, "")


def test_other_fields_of_a_message_are_the_template_s_and_nulls_of_a_table_are_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines({"messages": [USER | {"name": "x", "tools": None}, ASSISTANT]}))
    (found,) = conversations(path)
    assert found.messages == (USER | {"name": "x"}, ASSISTANT)


FINE = lines({"messages": [USER, ASSISTANT]})


def talk(*messages: object) -> bytes:
    return FINE + lines({"messages": list(messages)})


FAULTS: dict[str, tuple[str, bytes | Callable[[Path], object], str]] = {
    "no_json": ("a.jsonl", FINE + b'{"messages": [', "a.jsonl, line 2 is not JSON: "),
    "gbk": ("a.jsonl", FINE + '{"prompt": "你好"}'.encode("gbk"), "a.jsonl, line 2 is not UTF-8: "),
    "text": ("a.jsonl", FINE + lines({"text": "a"}), "line 2 is no conversation, which has messages, or "),
    "half": ("a.jsonl", lines({"prompt": "a"}), "its fields are prompt"),
    "list": ("a.jsonl", lines(["a"]), "line 1 is no conversation; it is ['a']"),
    "mixed": ("a.jsonl", FINE + lines({"prompt": "a", "completion": "b"}), "line 2 holds prompt and completion, but"),
    "null": ("a.jsonl", talk(USER, {"role": "assistant", "content": None}), 'message 2: the field "content" must'),
    "parts": ("a.jsonl", talk({"role": "user", "content": [{"type": "image"}]}, ASSISTANT), 'the field "content" must'),
    "null_value": ("a.jsonl", lines({"conversations": [HUMAN, GPT | {"value": None}]}), 'the field "value" must hold'),
    "null_output": ("a.jsonl", lines({"instruction": "a", "output": None}), 'line 1: the field "output" must hold a'),
    "null_completion": ("a.jsonl", lines({"prompt": "a", "completion": None}), 'the field "completion" must hold'),
    "role": ("a.jsonl", talk({"role": "bot", "content": "a"}, ASSISTANT), "message 1 has the unknown role 'bot'"),
    "list_role": ("a.jsonl", talk({"role": ["user"], "content": "a"}, ASSISTANT), "the unknown role ['user']"),
    "no_content": ("a.jsonl", talk({"role": "user"}, ASSISTANT), "message 1 has no role and content; its fields"),
    "no_message": ("a.jsonl", talk("a", ASSISTANT), "message 1 is 'a', and not a role and its content"),
    "no_messages": ("a.jsonl", talk(), "line 2 must hold a list of messages, not []"),
    "unanswered": ("a.jsonl", talk(USER, ASSISTANT, USER), "line 2 ends with a message of the user; the last one must"),
    "unasked": ("a.jsonl", talk(ASSISTANT), "line 2 has an answer alone, and no message before it"),
    "two_answers": ("a.jsonl", lines({"prompt": [USER], "completion": [ASSISTANT] * 2}), "a list of one message"),
    "surrogate": ("a.jsonl", b'{"prompt": "a\\ud83d", "completion": "b"}', r""""prompt" holds '\ud83d', half a"""),
    "columns": ("a.parquet", lambda path: pq.write_table(pa.table({"text": ["a"]}), path), "its fields are text"),
    "null_row": (
        "a.parquet",
        lambda path: pq.write_table(pa.table({"prompt": ["a", None], "completion": ["b", "c"]}), path),
        'a.parquet, row 2: the field "prompt" must hold a string, not None',
    ),
    "cut": ("a.parquet", FINE, "a.parquet cannot be read, or was cut short: "),
    "txt": ("a.txt", b"text", "a.txt must be a .jsonl, .jsonl.gz, .parquet or .arrow file: this topic trains on"),
    "absent": ("a.jsonl", lambda path: None, "there is no file "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_that_says_where(fault: str, tmp_path: Path) -> None:
    name, content, message = FAULTS[fault]
    path = write(tmp_path / name, content)
    with pytest.raises(InputError) as error:
        list(conversations(path))
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
