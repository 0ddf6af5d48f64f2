"""One night: its context, the results of its steps, and what is kept on disk for a night that is killed."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from harness.nightly.config import Config
from harness.store import Store

# Exit codes, the best first: all right; failures, regressions or alarms; then pytest's interrupted, no case, wrong
# usage; a step that broke.
SEVERITY = (0, 1, 2, 5, 4, 3)
BROKE = 3
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Result:
    """``state``: ok, failed, broke, interrupted or skipped; ``line`` for people; ``facts`` for the summary, in JSON's
    types; ``code`` as in :data:`SEVERITY`."""

    name: str
    state: str
    line: str
    code: int = 0
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)


def worst(codes: list[int]) -> int:
    return max(codes, key=lambda code: SEVERITY.index(code) if code in SEVERITY else len(SEVERITY), default=0)


@dataclass
class Night:
    """``known``: the runs that the store had before; ``run``: tonight's, once it has begun."""

    config: Config
    store: Store
    command: str  # of the suites
    started: str  # UTC, ISO 8601
    known: list[str] = field(default_factory=list)
    run: str = ""
    resumed: int = 0
    results: list[Result] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return Path(self.config.folder)

    def result(self, name: str) -> Result | None:
        return next((result for result in self.results if result.name == name), None)

    def facts(self, name: str, key: str) -> Any:
        """A fact of one step, or an empty list."""
        result = self.result(name)
        return result.facts.get(key, []) if result else []

    def save(self) -> None:
        kept = {name: getattr(self, name) for name in ("command", "started", "known", "run", "resumed")}
        try:
            write(state(self.folder), json.dumps({**kept, "results": [asdict(result) for result in self.results]}))
        except OSError as error:
            print(f"nightly: {state(self.folder)}: {error.strerror}; this night cannot be resumed", flush=True)


def state(folder: Path) -> Path:
    """The file that exists while a night is not finished."""
    return folder / "unfinished.json"


def load(config: Config, store: Store) -> Night | None:
    """The night that was not finished, if there is one, and it began less than a day ago: an older one says nothing
    about tonight."""
    path = state(Path(config.folder))
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text("utf-8"))
        results = [Result(**each) for each in kept.pop("results")]
        night = Night(config, store, results=results, **kept)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it, and start a new night") from None
    if datetime.now(UTC) - datetime.fromisoformat(night.started) > DAY:
        return None
    night.resumed += 1
    return night


def write(path: Path, text: str) -> None:
    """Replaces a file as a whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, "utf-8")
    partial.replace(path)
