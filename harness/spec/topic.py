"""The card of a topic: its description, its engines and its laws."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from harness.spec.contract import COMMON, Contract, Functions
from harness.spec.grid import FUNCTION_GRID, TRAINER_GRID, Grid

DIRECTIONS = ("equal", "at_most")


@dataclass(frozen=True)
class Engine:
    """An implementation of the topic. ``build`` is ``"module:function"``; ``requires`` holds distributions with
    versions (``"deepspeed>=0.16"``) and hardware (``"cuda"``, ``"sm90"``); without ``variants`` it implements all of
    the card's. ``environment``: the tox environment that provides it, if pip alone cannot. ``unavailable``: the reason
    why it can no longer be installed; such an engine has no ``build`` and no case, and its row in the report shows the
    reason. ``compiles``: the module that compiles code for some variants (its ``needs(engine, **variant)`` says which),
    run with ``python -m``."""

    build: str = ""
    requires: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    environment: str = ""
    unavailable: str = ""
    compiles: str = ""


@dataclass(frozen=True)
class Law:
    """A paper's promise about a quantity that a measure finds. ``formula`` is ``"module:function"``; called with
    ``(workload, topology, **variant)`` it returns the promised value, which may be 0, or None if the law does not
    apply. ``tolerance`` is relative; 0 means exact to the ``unit``. ``direction``: ``"equal"``, or ``"at_most"`` if a
    smaller value is no failure."""

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
    """A published figure to be tested. ``check`` is ``"module:function"``; called with this session's records of the
    topic (a list of dicts), it returns a :class:`Measurement` whose ``detail["status"]`` is *reproduced*,
    *contradicted*, *formula only* or *out of reach here*."""

    name: str
    text: str
    source: str
    check: str


@dataclass(frozen=True)
class Card:
    """The harness's entire knowledge of a topic. ``contract`` gives the kind of its engines and the modules that define
    their work; ``grid`` is its default work, if it differs from the common one. ``twins`` maps a variant to another one
    with bit-equal gradients."""

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
    def work(self) -> Grid:
        """Its default work."""
        return self.grid or (FUNCTION_GRID if isinstance(self.contract, Functions) else TRAINER_GRID)

    @property
    def unavailable(self) -> dict[str, str]:
        """The engines that can no longer be installed, with the reason."""
        return {name: engine.unavailable for name, engine in self.engines.items() if engine.unavailable}

    @property
    def adapted(self) -> tuple[str, ...]:
        """The engines that have an adapter."""
        return tuple(name for name in self.engines if name not in self.unavailable)
