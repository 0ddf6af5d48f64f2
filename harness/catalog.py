"""Topics and engines by name: built in, from installed packages, and added for a session.

Cards are data, so nothing here imports torch or an engine; adapters are named by ``"module:function"`` and imported in
the ranks. A package adds topics through the entry-point group ``plumbline.topics`` (value: a card) and engines through
``plumbline.engines`` (name ``topic.engine``, value: its ``build``).
"""

import difflib
import importlib
import importlib.util
import pkgutil
import symtable
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from typing import Any

from harness.spec import Card, Engine, Functions, Topology, Trainers, Workload
from harness.spec.contract import DENSE

# Source text that may define names which no statement shows.
MADE_AS_IT_RUNS = ("import *", "__getattr__", "globals(", "vars(", "setattr(", "exec(", "sys.modules")


def known(name: str, names: Iterable[str], what: str) -> str:
    """Returns ``name`` if it is one of ``names``; otherwise raises a ValueError with the nearest ones."""
    names = sorted(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    raise ValueError(f"unknown {what} {name!r}; {hint}")


def topics(added: Sequence[str] = ()) -> dict[str, Card]:
    """All cards by name, including the engines of installed packages and of ``added``
    (``"TOPIC:NAME=module:function"``)."""
    import impls

    cards: dict[str, Card] = {}
    for chapter in pkgutil.iter_modules(impls.__path__, "impls."):
        if not chapter.ispkg:
            continue
        package = importlib.import_module(chapter.name)
        for topic in pkgutil.iter_modules(package.__path__, f"{chapter.name}."):
            card = getattr(importlib.import_module(topic.name), "CARD", None) if topic.ispkg else None
            if card is not None:
                cards[card.name] = card
    for point in entry_points(group="plumbline.topics"):
        card = point.load()
        if card.name in cards:
            raise ValueError(f"two topics are called {card.name!r}: one is from the package {point.value}")
        cards[card.name] = card
    for point in entry_points(group="plumbline.engines"):
        topic_name, _, engine = point.name.partition(".")
        _add(cards, topic_name, engine, point.value)
    for text in added:
        topic_name, engine, build = _parse_engine(text)
        _add(cards, topic_name, engine, build)
    _unique(cards)
    return cards


def _unique(cards: Mapping[str, Card]) -> None:
    """A case is called by its variant: two topics with one of the same name would have cases of the same name."""
    topics: dict[str, str] = {}
    for card in cards.values():
        for variant in card.variants:
            if topics.setdefault(variant, card.name) != card.name:
                raise ValueError(
                    f"topics {topics[variant]} and {card.name} both have a variant {variant!r}: rename one"
                )


def _parse_engine(text: str) -> tuple[str, str, str]:
    place, _, build = text.partition("=")
    topic, _, engine = place.partition(":")
    module, _, function = build.partition(":")
    if not (topic and engine and module and function):
        raise ValueError(f"--add-engine takes TOPIC:NAME=module:function, not {text!r}")
    try:
        found = importlib.util.find_spec(module)
        names = _names(found) if found else set()
    except ModuleNotFoundError:
        found = None
    except SyntaxError as error:
        raise ValueError(f"--add-engine {text}: {error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:  # only the packages around the module are imported; they are the user's code
        raise ValueError(f"--add-engine {text}: the module {module!r} cannot be found: {error!r}") from error
    if found is None:
        raise ValueError(f"--add-engine {text}: no module {module!r} in the current folder or the environment")
    if names is not None and function not in names:
        near = difflib.get_close_matches(function, sorted(names), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"--add-engine {text}: {found.origin or module} has no {function!r}{hint}")
    return topic, engine, build


def _names(module: ModuleSpec) -> set[str] | None:
    """The names that a module defines, read from its source, since engines are imported only in the ranks. None if the
    source does not tell: it is missing, or it creates names at run time."""
    source = module.loader.get_source(module.name) if isinstance(module.loader, InspectLoader) else None
    if source is None:
        return None if module.origin else set()  # a folder without __init__.py defines nothing
    if any(sign in source for sign in MADE_AS_IT_RUNS):
        return None
    symbols = symtable.symtable(source, module.origin or module.name, "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or not symbol.is_referenced()}


def _add(cards: dict[str, Card], topic: str, engine: str, build: str) -> None:
    card = cards[known(topic, cards, "topic")]
    if engine in card.engines:
        raise ValueError(f"topic {topic} has an engine {engine!r} already; choose another name")
    cards[topic] = replace(card, engines={**card.engines, engine: Engine(build)})


def load(target: str) -> Any:
    """Loads the object that ``"module:attribute"`` names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def folder(card: Card) -> str:
    """The package of a topic's reference, which holds the topic's other files."""
    return card.engines["reference"].build.partition(":")[0].rpartition(".")[0]


def operators(card: Card, engine: str, variant: str) -> str:
    """The module that compiles code for this engine and variant, which takes minutes; empty if nothing is compiled."""
    module = card.engines[engine].compiles
    return module if module and load(f"{module}:needs")(engine, **card.variants[variant]) else ""


def telling(contract: Functions, variant: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a Function's variant that change the computation."""
    return {n: value for n, value in variant.items() if contract.telling is None or n in contract.telling}


def dense(
    contract: Trainers, workload: Workload, topology: Topology, variant: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The module of the dense model (the oracle) of a Trainer's variant, and the model's options."""
    options = load(f"{contract.plain}:options")(workload, topology, **variant)
    if options is None:
        return DENSE, load(f"{DENSE}:options")(workload, topology)
    return contract.plain, options


def case_mark(card: Card, variant: str) -> Mapping[str, object]:
    """The arguments that ``-m "case(...)"`` accepts beside topic, engine and the rest: the variant's own."""
    return {key: value for key, value in card.variants[variant].items() if isinstance(value, bool | int | str)}
