"""The card of a topic: what it is, who computes it, what it promises."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from harness.spec.contract import COMMON, Contract
from harness.spec.grid import Grid

DIRECTIONS = ("equal", "at_most")


@dataclass(frozen=True)
class Engine:
    """Who computes it. ``build`` is ``"module:function"``; ``requires`` holds distributions with versions
    (``"deepspeed>=0.16"``) and hardware (``"cuda"``, ``"sm90"``); no ``variants`` means all of the card's.
    ``environment``: the tox environment that has them, where pip alone does not do. ``unavailable``: why nobody can
    install it any more; it has no ``build`` then and no case, but its row in the report says so. ``compiles``: the
    module that compiles what some variants need (its ``needs(engine, **variant)`` says which), with ``python -m``."""

    build: str = ""
    requires: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    environment: str = ""
    unavailable: str = ""
    compiles: str = ""


@dataclass(frozen=True)
class Law:
    """What a paper promises of a quantity that a measure finds. ``formula`` is ``"module:function"``; called with
    ``(workload, topology, **variant)`` it gives the promised value, which may be 0, or None where the law does not
    apply. ``tolerance`` is relative; 0 means to the ``unit``. ``direction``: ``"equal"``, or ``"at_most"`` where less
    is no failure."""

    measure: str
    quantity: str
    formula: str
    tolerance: float
    source: str
    unit: str = "B"
    direction: str = "equal"

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"law of {self.quantity}: direction {self.direction!r} is none of {', '.join(DIRECTIONS)}")


@dataclass(frozen=True)
class Claim:
    """A published figure put to the test. ``check`` is ``"module:function"``; called with this session's records of
    the topic (a list of dicts), it returns a :class:`Finding` whose ``detail["status"]`` is *reproduced*,
    *contradicted*, *formula only* or *out of reach here*."""

    name: str
    text: str
    source: str
    check: str


@dataclass(frozen=True)
class Card:
    """Everything the harness knows of a topic. ``contract`` says what its engines are and which modules pose their
    work; ``grid`` is the work that runs by default, where it is not everybody's. ``twins`` maps a variant to another
    one whose gradients are bit-equal to its own."""

    name: str
    title: str
    sources: tuple[str, ...]
    variants: Mapping[str, Mapping[str, Any]]
    engines: Mapping[str, Engine]
    topologies: tuple[str, ...]
    contract: Contract = COMMON
    grid: Grid | None = None
    laws: tuple[Law, ...] = ()
    claims: tuple[Claim, ...] = ()
    twins: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "variants", MappingProxyType(dict(self.variants)))
        object.__setattr__(self, "engines", MappingProxyType(dict(self.engines)))
        object.__setattr__(self, "twins", MappingProxyType(dict(self.twins)))

    @property
    def unavailable(self) -> dict[str, str]:
        """The engines that nobody can install, and why."""
        return {name: engine.unavailable for name, engine in self.engines.items() if engine.unavailable}

    @property
    def adapted(self) -> tuple[str, ...]:
        """The engines that there is an adapter of."""
        return tuple(name for name in self.engines if name not in self.unavailable)
