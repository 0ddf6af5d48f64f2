"""A case, the atom of Plumbline: topic × variant × engine × topology × workload."""

import re
from dataclasses import dataclass
from functools import cached_property

from harness.spec.topology import Topology
from harness.spec.workload import Workload


def word(name: str) -> str:
    """``name`` in the form that a case's id uses: the alphabet a-z 0-9 _ . is safe on every command line."""
    return re.sub(r"[^a-z0-9_.]", "_", name.lower())


@dataclass(frozen=True)
class Case:
    topic: str
    variant: str
    engine: str
    topology: Topology
    workload: Workload

    @cached_property
    def id(self) -> str:
        """``zero3-deepspeed-dp2-fp32``; a workload other than the topic's default is appended."""
        parts = [self.variant, self.engine, str(self.topology), self.workload.dtype]
        if self.workload.name != Workload.name:
            parts.append(self.workload.name)
        return "-".join(word(part) for part in parts)

    def __str__(self) -> str:
        return self.id
