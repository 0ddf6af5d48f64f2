"""The default work of a topic."""

from dataclasses import dataclass
from typing import NamedTuple

from harness.spec.workload import Workload


class Row(NamedTuple):
    """``work``: a workload or its name; ``dtype``: its precision; ``where``: the topologies that run it (True: all of
    the topic's topologies; False: those with two ranks); ``variants``: the variants that compute it (empty: all);
    ``full``: it runs at the full depth alone, since other rows of the grid find the same faults."""

    work: str | Workload
    dtype: str
    where: bool | tuple[str, ...]
    variants: tuple[str, ...] = ()
    full: bool = False


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


# The default workloads of Trainers without a grid of their own: plain SGD shows wiring; AdamW in mixed precision has
# the states that papers discuss; uneven sizes and tied weights need padding.
TRAINER_GRID = Grid(
    (
        Row("thorough", "fp32", True),
        Row("thorough", "bf16", False),
        Row("distant", "bf16", False),
        Row("tiny", "fp32", True),
        Row("tiny", "bf16", False, full=True),
        Row("tiny_adamw", "fp32", False, full=True),
        Row("tiny_adamw", "bf16", True),
        Row("uneven_tied", "fp32", True),
        Row("uneven_tied", "bf16", False, full=True),
    ),
    timed=("tiny",),
    timed_on=("dp2", "tp2"),  # one rank has nothing to distribute
    large=("medium",),
)
# The function's arithmetic outweighs its calls at this length, which is not a multiple of a tile.
FUNCTION_GRID = Grid((Row("long", "fp32", True), Row("long", "bf16", True)), timed=("long",))
