"""The default work of a topic."""

from dataclasses import dataclass
from typing import NamedTuple

from harness.spec.workload import Workload


class Row(NamedTuple):
    """``work``: a workload or its name; ``dtype``: its precision; ``where``: the topologies that run it (True: all of
    the topic's topologies; False: those with two ranks); ``variants``: the variants that compute it (empty: all)."""

    work: str | Workload
    dtype: str
    where: bool | tuple[str, ...]
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """``timed``: names of the workloads whose steps are timed; on CPU ranks only on the topologies of ``timed_on``, if
    it names some. ``watched``: rows of which only the timeline is measured; on a topology without such rows, the timed
    workloads are watched. ``large``: named workloads, in their own precision, that keep GPUs busy; they run only on
    GPUs and have no oracle."""

    rows: tuple[Row, ...]
    timed: tuple[str, ...]
    timed_on: tuple[str, ...] = ()
    watched: tuple[Row, ...] = ()
    large: tuple[str, ...] = ()
