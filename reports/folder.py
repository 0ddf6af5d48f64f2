"""The files of a report in a folder: ``index.html``, and beside it the folder of the sections that it loads.

That folder's name holds a digest of its content, so that files of two runs never mix, and a file that is already there
is the right one. ``index.html`` is replaced last and at once: until then the former report is complete.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

INDEX = "index.html"
OURS = re.compile(r"sections-[\w.-]+-[0-9a-f]{12}", re.ASCII)


def name(run: str, digest: str) -> str:
    """The name of the folder of a run's sections."""
    return f"sections-{re.sub(r'[^A-Za-z0-9_.-]', '_', run)[:80]}-{digest[:12]}"


def replace(folder: Path, index: str, beside: str, files: Mapping[str, str]) -> Path:
    """Writes a report and returns the path of its ``index.html``. Raises OSError, and then the folder is as before."""
    path = folder / INDEX
    former = path.stat().st_mtime if path.is_file() else None
    new = not (folder / beside).exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if files:
            (folder / beside).mkdir(exist_ok=True)
        for file, text in files.items():
            _put(folder / beside / file, text.encode())
        _put(path, index.encode())
    except OSError:
        if beside and new:
            _remove(folder / beside)
        raise
    for old in folder.iterdir():
        # A section folder that is newer than the former index may belong to a report that is being written.
        if OURS.fullmatch(old.name) and old.name != beside and former and old.stat().st_mtime <= former:
            _remove(old)
    return path


def _put(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")  # in the same folder, where a rename is atomic
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Removes a section folder. It stays if it holds a file of somebody else, or may not be removed."""
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            if file.suffix in (".js", ".html", ".css") or re.fullmatch(r"\..+\.\d+", file.name):
                file.unlink()
        folder.rmdir()
