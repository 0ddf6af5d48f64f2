"""The configuration of a night, read strictly from TOML."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from harness.launch.base import LAUNCHERS
from harness.measures import MEASURES
from harness.nightly.quarantine import Entry
from harness.plan.depth import DEPTHS
from harness.spec.files import readable
from harness.spec.table import checked, nearest

STEPS = ("suites", "renew", "trend", "compare", "findings", "report", "publish")  # in this order


@dataclass(frozen=True)
class Suites:
    """The options of ``pytest suites/`` by their names; ``select`` is pytest's ``-k``."""

    depth: str = "full"
    topics: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    workload: tuple[str, ...] = ()
    topologies: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    add_engine: tuple[str, ...] = ()
    gpus: int | None = None
    ranks: int | None = None
    launcher: str = "local"
    hosts: tuple[str, ...] = ()
    nodes: int | None = None
    ranks_per_node: int | None = None
    head: str | None = None
    remote_shell: str | None = None
    slurm: str | None = None
    case_timeout: float | None = None
    select: str = ""

    def arguments(self) -> list[str]:
        given = []
        for each in fields(self):
            option, value = f"--{each.name.replace('_', '-')}", getattr(self, each.name)
            if each.name == "select":
                given += ["-k", value] if value else []
            elif each.name == "add_engine":
                given += [f"{option}={engine}" for engine in value]
            elif value not in (None, ()):
                given.append(f"{option}={','.join(value) if isinstance(value, tuple) else value}")
        return given


@dataclass(frozen=True)
class Notify:
    """``webhook``: a URL, or ``$NAME`` for the one in that variable of the environment; ``timeout`` in seconds."""

    webhook: str = ""
    timeout: float = 10.0


@dataclass(frozen=True)
class Config:
    """``folder`` receives the summaries, the log, ``report/`` and ``site/``. Paths are absolute; in the file they are
    relative to its folder."""

    path: Path
    name: str = "nightly"
    store: str = "plumbline.db"
    folder: str = "nightly"
    steps: tuple[str, ...] = STEPS
    quarantine_file: str = ""
    retry_pause: float = 60.0  # seconds
    suites: Suites = field(default_factory=Suites)
    notify: Notify = field(default_factory=Notify)
    quarantine: tuple[Entry, ...] = ()

    @property
    def home(self) -> Path:
        return self.path.parent


@dataclass(frozen=True)
class _Quarantine:
    quarantine: tuple[Entry, ...] = ()


def example() -> str:
    return files("harness.nightly").joinpath("example.toml").read_text("utf-8")


def read(path: Path) -> Config:
    """The configuration in a file. Any problem with it is a one-line ValueError that names file and field."""
    values = checked(Config, _table(path), path.name, given={"path": path.resolve()})
    for name, kind in (("suites", Suites), ("notify", Notify)):
        values[name] = kind(**checked(kind, values.get(name, {}), f"{path.name}: [{name}]"))
    entries = _entries(values.get("quarantine", ()), path.name)
    if named := values.get("quarantine_file"):
        other = path.parent / named
        tables = checked(_Quarantine, _table(other), other.name).get("quarantine", ())
        entries += _entries(tables, other.name)
    config = Config(**values | {"quarantine": tuple(entries)})
    _check(config, path.name)
    store = config.store if "://" in config.store else str(config.home / Path(config.store).expanduser())
    return replace(config, store=store, folder=str(config.home / Path(config.folder).expanduser()))


def _table(path: Path) -> dict[str, Any]:
    content = readable(path).read_bytes()
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except ValueError as error:  # TOML's own errors include line and column
        raise ValueError(f"{path.name}: {error}") from None


def _entries(tables: Sequence[Any], file: str) -> list[Entry]:
    found = []
    for number, table in enumerate(tables, start=1):
        place = f"{file}: [[quarantine]] {number}"
        entry = Entry(**checked(Entry, table, place))
        for name in ("case", "owner", "reason"):
            if not getattr(entry, name).strip():
                raise ValueError(f"{place}: {name} is empty")
        if entry.measure and entry.measure not in MEASURES:
            raise ValueError(f"{place}: unknown measure {entry.measure!r}; {nearest(entry.measure, MEASURES)}")
        found.append(entry)
    return found


def _check(config: Config, file: str) -> None:
    for name in config.steps:
        if name not in STEPS:
            raise ValueError(f"{file}: steps: unknown step {name!r}; {nearest(name, STEPS)}")
    for name, value, known in (("depth", config.suites.depth, DEPTHS), ("launcher", config.suites.launcher, LAUNCHERS)):
        if value not in known:
            raise ValueError(f"{file}: [suites]: unknown {name} {value!r}; {nearest(value, known)}")
    if not config.notify.timeout > 0:
        raise ValueError(f"{file}: [notify]: timeout must be above 0 seconds, not {config.notify.timeout:g}")
    if not config.retry_pause >= 0:
        raise ValueError(f"{file}: retry_pause must be 0 seconds or more, not {config.retry_pause:g}")
    webhook = config.notify.webhook
    if webhook and not webhook.startswith(("https://", "http://", "$")):
        raise ValueError(f"{file}: [notify]: webhook must begin with https://, http:// or $ (a variable's name)")
    for name in ("name", "store", "folder"):
        if not getattr(config, name).strip():
            raise ValueError(f"{file}: {name} is empty; leave it out for its default")
