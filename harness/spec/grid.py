"""The work that a topic runs where nobody asks for other work."""

from dataclasses import dataclass
from typing import NamedTuple

from harness.spec.workload import Workload


class Row(NamedTuple):
    """``work``: a workload, or the name of one; ``dtype``: its precision; ``where``: the topologies that run it (True:
    all of the topic's, False: those of two ranks); ``variants``: the variants that compute it, if not all do."""

    work: str | Workload
    dtype: str
    where: bool | tuple[str, ...]
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """``timed``: names of the workloads whose steps are timed, on CPU ranks on ``timed_on`` alone, if that names
    topologies. ``watched``: rows of which only the timeline is measured; where a topology has none, the timed workloads
    are watched. ``large``: named workloads, in their own precision, that keep GPUs busy: GPUs alone run them, and they
    have no oracle."""

    rows: tuple[Row, ...]
    timed: tuple[str, ...]
    timed_on: tuple[str, ...] = ()
    watched: tuple[Row, ...] = ()
    large: tuple[str, ...] = ()
