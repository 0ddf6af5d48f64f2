"""A pytest plugin for a session without enough time for all cases: topics take turns until the time is up.

A turn is a case with all its measures, or a block of timed rounds. Progress is written to a file continuously, since
the session may be killed.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Generator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pytest

from harness.hooks import SESSION
from harness.spec import Case

FILE, DEADLINE = "--turns", "--deadline"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(FILE, type=Path, required=True, help="the JSON file of the progress")
    parser.addoption(DEADLINE, type=float, required=True, help="no turn begins later (seconds since the epoch)")


def turn(case: Case, measure: str) -> tuple[Any, ...]:
    """The turn's key: another topic must not interrupt a turn, since rounds are timed for all engines of a block at
    once."""
    return (case.topology, case.workload) if measure in ("throughput", "bottleneck") else (case.id,)


def interleaved(turns: Sequence[tuple[str, list[Any]]]) -> list[Any]:
    """Turns with their topics → their items, ordered so that every topic has one turn before any has two."""
    by_topic: dict[str, list[list[Any]]] = {}
    for topic, items in turns:
        by_topic.setdefault(topic, []).append(items)
    rounds = zip_longest(*by_topic.values(), fillvalue=[])
    return list(chain.from_iterable(chain.from_iterable(rounds)))


class Reached:
    def __init__(self, path: Path, items: Sequence[Any]) -> None:
        self.path = path
        self.planned = Counter(item.callspec.params["case"].topic for item in items)
        self.done: Counter[str] = Counter()

    def write(self) -> None:
        topics = {name: {"reached": self.done[name], "of": count} for name, count in self.planned.items()}
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(topics))
        os.replace(partial, self.path)


REACHED = pytest.StashKey[Reached]()


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> Generator[None, None, None]:
    yield  # the suites' own order, in which a turn's items are adjacent within their topic
    turns: dict[tuple[Any, ...], list[Any]] = {}
    for item in items:
        case, measure = item.callspec.params["case"], item.callspec.params["measure"]
        turns.setdefault((case.topic, *turn(case, measure)), []).append(item)
    items[:] = interleaved([(key[0], found) for key, found in turns.items()])
    session = config.stash[SESSION]  # its checked runs are started ahead, in the order of the plan
    session.plan = session.plan.only([(i.callspec.params["measure"], i.callspec.params["case"]) for i in items])
    config.stash[REACHED] = Reached(config.getoption(FILE), items)
    config.stash[REACHED].write()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: Any) -> Generator[None, object, object]:
    found = yield
    reached = item.config.stash[REACHED]
    reached.done[item.callspec.params["case"].topic] += 1
    reached.write()
    if time.time() > item.config.getoption(DEADLINE):
        item.session.shouldstop = "the time is up"
    return found
