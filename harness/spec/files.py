"""The user's files: a file that cannot be read is reported in one line."""

from pathlib import Path

LFS = b"version https://git-lfs.github.com/spec/"


class InputError(ValueError):
    """Input from the user that cannot be used. The message is one line and complete: nobody needs a traceback with
    it."""


def readable(path: Path) -> Path:
    """Returns ``path`` if it is a file with its content. Raises InputError if it is absent, a folder, forbidden or a
    Git LFS pointer, which a clone without git-lfs leaves in place of a large file."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if start == LFS:
        raise InputError(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in its repository")
    return path


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
