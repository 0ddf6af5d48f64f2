"""What differs between the environments of two selections of runs."""

from collections.abc import Iterable, Mapping
from typing import Any

Differences = dict[str, tuple[str, str]]
FIRST = ("packages", "python", "driver", "commit", "dirty")  # versions first: they change most often


def differences(before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]) -> Differences:
    """Name → (before, after), only where they differ."""
    first, last = _texts(before), _texts(after)
    names = sorted(first.keys() | last.keys(), key=lambda name: (_place(name), name))
    pairs = {name: (first.get(name, "absent"), last.get(name, "absent")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _place(name: str) -> int:
    kind = name.partition(" ")[0]
    return FIRST.index(kind) if kind in FIRST else len(FIRST)


def _texts(environments: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The values by name; several different ones are listed."""
    found: dict[str, dict[str, None]] = {}
    for environment in environments:
        for name, text in _flat(environment):
            found.setdefault(name, {})[text] = None
    return {name: ", ".join(texts) for name, texts in found.items()}


def _flat(environment: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in environment.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {key}", _text(inner)) for key, inner in value.items())
        elif name == "memory":
            yield name, f"{round(value / 2**30)} GiB"  # its last digits change with the kernel
        else:
            yield name, _text(value)


def _text(value: Any) -> str:
    if value is None or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
