"""Removes private details: users and passwords in URLs, and the path of the home folder."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

USER = re.compile(r"(?<=://)[^\s/?#]*@")
SECRET = re.compile(r"(?i)\b(\w*(?:password|passwd|secret|api_?key|access_token)=)[^\s&;'\"]+")
# Ends with the argument: everything up to its last @ is removed, whatever the password contains, and so is its query.
WHOLE_USER = re.compile(r"(?s)(?<=://)(?!/).*@")
WHOLE_QUERY = re.compile(r"(?s)(://[^?]*\?).*")


def redact(text: str) -> str:
    """``text`` without users and passwords of URLs (``***``), and with ``~`` for the home folder."""
    text = SECRET.sub(r"\1***", USER.sub("***@", text))
    for home in {str(Path.home()), os.path.realpath(Path.home())} - {"/"}:
        text = re.sub(rf"(?<![\w.~-])('?){re.escape(home)}(?=/|$|[\s'\":,;)\]])/?", _home, text)
    return text


def _home(found: re.Match[str]) -> str:
    """``'/home/me/a b'`` becomes ``~/'a b'``, which a shell still expands."""
    return f"~/{found[1]}" if found[0].endswith("/") else f"{found[1]}~"


def command(arguments: Sequence[object]) -> str:
    """A command line that can be published and run again."""
    return " ".join(redact(shlex.quote(_argument(str(argument)))) for argument in arguments)


def _argument(text: str) -> str:
    return WHOLE_QUERY.sub(r"\1***", WHOLE_USER.sub("***@", text))
