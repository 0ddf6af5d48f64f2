"""A TOML table as the values of a dataclass, checked strictly: a ValueError names the place, the field and what is
allowed."""

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

MEANINGS = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    datetime.date: "a date, as 2027-03-31",
    tuple[str, ...]: "a list of texts",
    tuple[float, float]: "two numbers, the smaller first",
}


def checked(
    of: type[Any], table: Mapping[str, Any], place: str, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The table's values in the types of the dataclass ``of``, with those that are ``given``. ``X | None`` is an
    optional X; a tuple of dataclasses is a list of tables, and a dataclass a table, which the caller reads."""
    hints, values = get_type_hints(of), dict(given or {})
    allowed = [field.name for field in fields(of) if field.name not in values]
    for name in table:
        if name not in allowed:
            raise ValueError(f"{place}: unknown field {name!r}; {nearest(name, allowed)}")
    for field in fields(of):
        if field.name not in allowed:
            continue
        if field.name not in table:
            if _required(field):
                raise ValueError(f"{place}: the field {field.name!r} is missing")
            continue
        values[field.name] = _value(hints[field.name], field.name, table[field.name], place)
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known := list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _required(field: "Field[Any]") -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _value(hint: Any, name: str, value: Any, place: str) -> Any:
    if type(None) in get_args(hint):
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    if not _fits(hint, value):
        raise ValueError(f"{place}: {name} must be {_meaning(hint, name)}, not {value!r}")
    return tuple(value) if isinstance(value, list) else value


def _meaning(hint: Any, name: str) -> str:
    if hint in MEANINGS:
        return MEANINGS[hint]
    return f"tables [[{name}]]" if get_origin(hint) is tuple else f"a table [{name}]"


def _fits(hint: Any, value: Any) -> bool:
    if hint == tuple[float, float]:
        numbers = isinstance(value, list) and all(type(each) in (int, float) for each in value)
        return numbers and len(value) == 2 and value[0] <= value[1]
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0] if get_args(hint)[0] in MEANINGS else dict
        return isinstance(value, list) and all(isinstance(each, kind) for each in value)
    if hint in (int, float):
        return type(value) in ((int,) if hint is int else (int, float))  # a bool is an int
    if hint is datetime.date:
        return type(value) is datetime.date  # a datetime is a date
    return isinstance(value, hint if hint in MEANINGS else dict)
