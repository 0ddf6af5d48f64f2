"""Removes secrets and the path of the home folder from every text that is stored or printed. For what leaves the
machine see :mod:`harness.store.published`."""

import os
import re
import shlex
from collections.abc import Sequence
from functools import lru_cache

USER = re.compile(r"(?<=://)[^\s/?#]*@")
SECRET = re.compile(
    r"(?i)((?:\b\w*(?:password|passwd|secret|api_?key|secret_?key|access_?key|access_?token|auth_?token|hf_?token)"
    r"|(?<=[?&\s])(?:token|sig|signature|x-amz-[\w-]+))=)[^\s&;'\"]+"
)
# Tokens by the form that their makers gave them (Hugging Face, GitHub, GitLab, OpenAI, Slack, AWS), and headers.
TOKEN = re.compile(
    r"\b(?:hf_\w{20,}|gh[oprsu]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{15,}|sk-[\w-]{20,}|xox[a-z]-[\w-]{10,}|AKIA[A-Z\d]{16}"
    r"|(?<=Bearer )[\w.~+/=-]{8,}|(?<=Basic )[\w+/=]{8,})"
)
# Ends with the argument: everything up to its last @ is removed, whatever the password contains, and so is its query.
WHOLE_USER = re.compile(r"(?s)(?<=://)(?!/).*@")
WHOLE_QUERY = re.compile(r"(?s)(://[^?]*\?).*")


def redact(text: str) -> str:
    """``text`` without tokens and the users and passwords of URLs (``***``), and with ``~`` for the home folder."""
    text = TOKEN.sub("***", text)
    if "/" not in text and "=" not in text:
        return text
    text = SECRET.sub(r"\1***", USER.sub("***@", text))
    for home in _homes(os.path.expanduser("~")):
        if home not in text:
            continue
        text = re.sub(rf"(?<![\w.~-])('?){re.escape(home)}(?=/|$|[\s'\":,;)\]])/?", _home, text)
    return text


@lru_cache(maxsize=1)
def _homes(folder: str) -> tuple[str, ...]:
    """The home folder, and where it leads if it is a link."""
    return tuple({folder, os.path.realpath(folder)} - {"/"})


def _home(found: re.Match[str]) -> str:
    """``'/home/me/a b'`` becomes ``~/'a b'``, which a shell still expands."""
    return f"~/{found[1]}" if found[0].endswith("/") else f"{found[1]}~"


def command(arguments: Sequence[object]) -> str:
    """A command line that can be published and run again."""
    return " ".join(redact(shlex.quote(_argument(str(argument)))) for argument in arguments)


def _argument(text: str) -> str:
    return WHOLE_QUERY.sub(r"\1***", WHOLE_USER.sub("***@", text))
