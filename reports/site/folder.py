"""The folder of a site. A manifest lists every file that was written there and what each was made from.

Only listed files are replaced or removed, and a file appears as a whole or not at all.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST, JOURNAL = "site.json", ".site.journal"
FORMAT = 1


class SiteError(Exception):
    """The site cannot be written; the message is one line with advice."""


@dataclass(frozen=True)
class Entry:
    """``made``: what the file was made from, as a text that changes with it; empty while the file is being written.
    ``facts``: what other pages say about it."""

    made: str = ""
    sha256: str = ""
    size: int = -1
    facts: Mapping[str, Any] = field(default_factory=dict)


class Folder:
    """Use it as ``with Folder.open(path) as folder``: only one process at a time writes to a site."""

    def __init__(self, root: Path, entries: dict[str, Entry]) -> None:
        self.root, self.entries = root, entries
        self.written: list[str] = []
        self.kept: set[str] = set()  # names that are still part of the site

    @classmethod
    @contextmanager
    def open(cls, root: Path) -> Iterator["Folder"]:
        with _reporting(root):
            root.mkdir(parents=True, exist_ok=True)
            handle = os.open(root, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SiteError(f"{root}: another plumbline publish writes there; wait until it has ended") from None
            folder = cls(root, _read(root))
            with _reporting(root):
                yield folder
        finally:
            os.close(handle)

    def fresh(self, name: str, made: str) -> bool:
        """Whether the file is there and was made from the same; it is then still part of the site."""
        entry = self.entries.get(name)
        if entry is None or entry.made != made or not made or self._size(name) != entry.size:
            return False
        self.kept.add(name)
        return True

    def facts(self, name: str) -> Mapping[str, Any]:
        return self.entries[name].facts

    def write(self, name: str, content: bytes, made: str = "", facts: Mapping[str, Any] | None = None) -> None:
        """Replaces a file as a whole, unless it has this very content already."""
        digest = hashlib.sha256(content).hexdigest()
        old = self.entries.get(name)
        self.kept.add(name)
        entry = Entry(made or digest, digest, len(content), facts or {})
        if old is not None and old.sha256 == digest and self._size(name) == len(content):
            if old != entry:
                self._note(name, entry)
            return

        def put(path: Path) -> None:
            path.write_bytes(content)

        self._replace(name, put, entry)

    def write_by(self, name: str, made: str, write: Callable[[Path], None]) -> None:
        """As :meth:`write`, where ``write`` makes the file at the path that it is given."""
        self.kept.add(name)
        self._replace(name, write, Entry(made))

    def adopt(self, place: str, source: Path, made: str) -> None:
        """Moves every file under ``source`` to the folder ``place``, ``index.html`` last: it names the others."""
        files = [path for path in source.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (path == source / "index.html", path)):
            name = f"{place}/{path.relative_to(source).as_posix()}"
            self.write(name, path.read_bytes(), made)

    def below(self, place: str) -> list[str]:
        return [name for name in self.entries if name.startswith(f"{place}/")]

    def keep(self, names: Collection[str]) -> None:
        self.kept |= set(names)

    def finish(self) -> list[str]:
        """Removes listed files that are no longer part of the site, and saves the manifest. Returns the names of those
        that somebody has changed since: they are left alone."""
        changed = []
        for name in sorted(self.entries.keys() - self.kept):
            path, entry = self._path(name), self.entries[name]
            if path.is_file() and entry.sha256 and _digest(path) != entry.sha256:
                changed.append(name)
            else:
                path.unlink(missing_ok=True)
                _remove_empty(path.parent, self.root)
            del self.entries[name]
        entries = {name: asdict(self.entries[name]) for name in sorted(self.entries)}
        text = json.dumps({"plumbline_site": FORMAT, "files": entries}, indent=1) + "\n"
        partial = self.root / f".{MANIFEST}.{os.getpid()}"
        try:
            partial.write_text(text, "utf-8")
            partial.replace(self.root / MANIFEST)
        finally:
            partial.unlink(missing_ok=True)
        (self.root / JOURNAL).unlink(missing_ok=True)
        return changed

    def _replace(self, name: str, write: Callable[[Path], None], entry: Entry) -> None:
        path = self._path(name)
        if path.exists() and name not in self.entries:
            raise SiteError(f"{path}: plumbline did not write this file; move it away, or publish to another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._note(name, Entry())  # from here on the name is ours, even if this process is killed
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            write(partial)
            if not entry.sha256:
                entry = Entry(entry.made, _digest(partial), partial.stat().st_size, entry.facts)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        self._note(name, entry)
        self.written.append(name)

    def _note(self, name: str, entry: Entry) -> None:
        self.entries[name] = entry
        with (self.root / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps({"name": name, **asdict(entry)}) + "\n")

    def _size(self, name: str) -> int:
        try:
            return self._path(name).stat().st_size
        except FileNotFoundError:
            return -2

    def _path(self, name: str) -> Path:
        return self.root / _checked(name)


def _checked(name: str) -> str:
    """A manifest may come from anywhere: no name of it may lead out of the folder."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts:
        raise SiteError(f"{MANIFEST} names {name!r}, which is no file of the site; publish to an empty folder")
    return name


def _read(root: Path) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    manifest, journal = root / MANIFEST, root / JOURNAL
    if manifest.exists():
        try:
            stored = json.loads(manifest.read_text("utf-8"))
            if stored["plumbline_site"] != FORMAT:
                raise ValueError(f"its format is {stored['plumbline_site']}, not {FORMAT}")
            entries = {_checked(name): Entry(**entry) for name, entry in stored["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SiteError(
                f"{manifest}: not the manifest of a site that this Plumbline wrote ({error}); publish to another folder"
            ) from None
    if journal.exists():  # the last publish was killed
        for line in journal.read_text("utf-8", "replace").splitlines():
            try:
                noted = json.loads(line)
                name = _checked(noted.pop("name"))
                entries[name] = Entry(**noted)
            except (ValueError, KeyError, TypeError, AttributeError):
                break  # the line that it was writing
    return entries


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_empty(path: Path, root: Path) -> None:
    while path != root and path.is_dir() and not any(path.iterdir()):
        path.rmdir()
        path = path.parent


@contextmanager
def _reporting(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = error.filename or root
        raise SiteError(
            f"cannot write {place}: {error.strerror}; free some space, allow writing there, or name another folder"
        ) from None
