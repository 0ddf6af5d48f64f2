"""Addresses of pages. A name of the store becomes a file's name: it may come from a foreign store."""

import hashlib
import re

SAFE = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,150}", re.ASCII)  # no capitals: some file systems do not tell them apart
TAKEN = "index"


def safe(name: str) -> str:
    """The name itself, or, where it cannot be a file's, what can be of it and a digest."""
    if SAFE.fullmatch(name) and name != TAKEN:
        return name
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:80]
    return f"{plain}--{hashlib.sha256(name.encode()).hexdigest()[:12]}".lstrip("-")


def case_page(case: str) -> str:
    return f"cases/{safe(case)}.html"


def run_folder(run: str) -> str:
    return f"runs/{safe(run)}"


def run_page(run: str) -> str:
    return f"{run_folder(run)}/index.html"
