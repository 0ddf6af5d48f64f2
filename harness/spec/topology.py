"""The sizes of a device mesh."""

import re
from dataclasses import astuple, dataclass, fields
from functools import cache


@dataclass(frozen=True, order=True)
class Topology:
    """Ranks along each mesh axis: data, tensor, pipeline, context and expert parallelism.

    Experts are distributed over the data-parallel ranks, so ``ep`` divides ``dp`` and adds no ranks of its own.
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        for axis, size in zip(self.axes(), astuple(self), strict=True):
            if size < 1:
                raise ValueError(f"topology axis {axis} must be at least 1, not {size}")
        if self.dp % self.ep:
            raise ValueError(f"ep {self.ep} does not divide dp {self.dp}")

    @classmethod
    @cache
    def axes(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """``"dp2tp2"`` → ``Topology(dp=2, tp=2)``."""
        pairs = re.findall(r"([a-z]+)(\d+)", text)
        if "".join(axis + size for axis, size in pairs) != text or not pairs:
            raise ValueError(f"topology {text!r} is not a list of axis sizes such as dp2tp2")
        if unknown := [axis for axis, _ in pairs if axis not in cls.axes()]:
            raise ValueError(f"unknown axis {unknown[0]!r} in topology {text!r}; known: {', '.join(cls.axes())}")
        return cls(**{axis: int(size) for axis, size in pairs})

    @property
    def world_size(self) -> int:
        return self.dp * self.tp * self.pp * self.cp

    @property
    def used(self) -> tuple[str, ...]:
        """The axes that are longer than 1."""
        return tuple(axis for axis in self.axes() if getattr(self, axis) > 1)

    def __str__(self) -> str:
        return "".join(f"{axis}{getattr(self, axis)}" for axis in self.used) or "dp1"
