"""Imports modules in an environment where only their allowed requirements can be found.

Run as ``python -m tests.alone`` with a JSON on stdin, ``[{"modules": [names], "blocked": [names], "absent": [names]},
…]``, of top-level names. A required library that is not installed (``absent``) is replaced by a stub, so that the
imports after it also run. Prints the failures.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class StandIn(ModuleType):
    """Every attribute is a class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, type(name, (), {}))
        return getattr(self, name)


class Finder(Loader):
    """Finds the same modules as the other finders, except ``blocked``; ``absent`` ones are stubs."""

    def __init__(self, blocked: Sequence[str], absent: Sequence[str]) -> None:
        self.blocked, self.absent, self.others = set(blocked), set(absent), list(sys.meta_path)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        top = name.partition(".")[0]
        if top in self.absent:
            return ModuleSpec(name, self, is_package=True)
        found = (finder.find_spec(name, path, target) for finder in self.others if top not in self.blocked)
        return next((spec for spec in found if spec is not None), None)

    def find_distributions(self, context: Any) -> Iterator[Any]:
        for finder in self.others:
            yield from getattr(finder, "find_distributions", lambda _: ())(context)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


def failures(modules: Sequence[str], blocked: Sequence[str], absent: Sequence[str]) -> dict[str, str]:
    sys.meta_path[:] = [Finder(blocked, absent)]
    found = {}
    for module in modules:
        try:
            import_module(module)
        except Exception:
            found[module] = traceback.format_exc(limit=-3)
    return found


def in_a_fork(work: dict[str, list[str]]) -> dict[str, str]:
    """Removes one set's imports from sys.modules before the next set."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.dup2(2, 1)
        with os.fdopen(writing, "w") as pipe:
            json.dump(failures(**work), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else dict.fromkeys(work["modules"], "its process died")


if __name__ == "__main__":
    import torch  # noqa: F401  imported once for all sets

    found: dict[str, str] = {}
    for each in json.load(sys.stdin):
        found |= in_a_fork(each)
    json.dump(found, sys.stdout)
