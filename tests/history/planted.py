"""Series with planted changes, and how many of them the trend finds, how late, and at the price of which false alarms.

``python -m tests.history.planted`` prints one table and the time that the trend takes over 5,000 series.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from scipy.stats import binomtest

from harness.history import Point, Series
from harness.history.trend import FALSE, trend

STEP = 60  # nights before a step
MONTH = 30  # nights in which false alarms are counted
NIGHTS = STEP + MONTH
NEAR = 3  # runs: an alarm this near to the step has found it
FAMILY = 500  # series that are judged together


@dataclass(frozen=True)
class Plant:
    """``noise``: standard deviation, relative to the level; ``step``: of the level after ``history`` nights. ``drift``:
    of the machine over all nights, as a random walk; ``controlled``: every series has a reference beside it, with the
    machine's drift and noise of its own. ``missing``: share of the nights. ``spikes``: share of the nights whose figure
    is a fifth higher. ``heavy``: noise of Student's t with 3 degrees of freedom."""

    noise: float = 0.01
    step: float = 0.0
    drift: float = 0.0
    controlled: bool = False
    missing: float = 0.0
    spikes: float = 0.0
    heavy: bool = False
    history: int = STEP


STEPS = [Plant(noise, step) for step in (0.01, 0.02, 0.03, 0.05, 0.10) for noise in (0.005, 0.01, 0.02, 0.05)]
KINDS = {
    "normal noise": Plant(),
    "3 % of stray runs, a fifth slower": Plant(spikes=0.03),
    "heavy tails": Plant(heavy=True),
    "a fifth of the nights missing": Plant(missing=0.2),
    "all three of them": Plant(spikes=0.03, heavy=True, missing=0.2),
    "drift of 5 %, without a control": Plant(drift=0.05),
    "drift of 5 %, with a control": Plant(drift=0.05, controlled=True),
}


def planted(plant: Plant, count: int, seed: int, nights: int = NIGHTS) -> list[Series]:
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        walk = np.cumsum(generator.normal(0, 1, nights)) / nights**0.5 * plant.drift
        kept = np.flatnonzero(generator.random(nights) >= plant.missing)
        for engine in ("deepspeed", "reference") if plant.controlled else ("deepspeed",):
            noise = generator.standard_t(3, nights) / 3**0.5 if plant.heavy else generator.normal(0, 1, nights)
            values = (1 + plant.noise * noise) * np.exp(walk)
            values[generator.random(nights) < plant.spikes] *= 1.2
            if engine == "deepspeed":
                values[plant.history :] *= 1 + plant.step
            found.append(series(values, f"case{number}", engine, kept))
    return found


def series(values: Sequence[float], variant: str, engine: str, kept: Sequence[int], machine: str = "here") -> Series:
    """A series of step times; ``kept``: the nights that were run."""
    points = tuple(Point(f"run{n:03}", f"night {n:03}", float(values[n]), "pass") for n in kept)
    case = f"{variant}-{engine}-dp2-fp32"
    return Series(case, "throughput", "step_time", "s", "lower", machine, points, "zero", engine)


def after(found: Sequence[Series], nights: int) -> list[Series]:
    """The series as they were after so many nights."""
    last = f"run{nights - 1:03}"
    return [
        Series(**{**vars(each), "points": tuple(point for point in each.points if point.run <= last)}) for each in found
    ]


def named(found: Sequence[Series]) -> set[tuple[str, int]]:
    """The case and the night of each alarm in a family of FAMILY, filled up with series that never move."""
    still = [series([1.0] * 8, f"still{number}", "torch", range(8)) for number in range(FAMILY - len(found))]
    return {(alarm.series.case, int(alarm.run[3:])) for alarm in trend([*found, *still])}


def delays(plant: Plant, seed: int, count: int, most: int = 10) -> list[int]:
    """Nights with the step until its alarm (``most + 1``: none), each series alone among FAMILY - 1 that never move:
    their number multiplies its p-value."""
    size = 2 if plant.controlled else 1
    stepped, found = planted(plant, count, seed, plant.history + most), []
    for number in range(count):
        mine = stepped[size * number : size * number + size]
        seen = (night for night in range(1, most + 1) if _found(after(mine, plant.history + night), plant.history))
        found.append(next(seen, most + 1))
    return found


def _found(series: Sequence[Series], step: int) -> bool:
    alarms = [alarm for alarm in trend(series) if alarm.p * FAMILY / len(series) <= FALSE]
    return any(abs(int(alarm.run[3:]) - step) <= NEAR for alarm in alarms)


def false_alarms(plant: Plant, seed: int, count: int = FAMILY) -> int:
    """Different alarms in the last MONTH of the nights, with a look each night: two of one case that are near to each
    other are one."""
    still, alarms = planted(plant, count, seed), set[tuple[str, int]]()
    for nights in range(NIGHTS - MONTH + 1, NIGHTS + 1):
        for case, at in named(after(still, nights)):
            if not any(case == other and abs(at - night) <= NEAR for other, night in alarms):
                alarms.add((case, at))
    return len(alarms)


def mixed(seed: int, count: int = 50) -> int:
    """Alarms where two machines, one a fifth slower, took turns by chance: none, since each has series of its own."""
    generator, found = np.random.default_rng(seed), []
    for number in range(count):
        here = generator.random(NIGHTS) < 0.5
        values = (1 + 0.01 * generator.normal(0, 1, NIGHTS)) * np.where(here, 1.0, 1.2)
        for name, nights in (("here", here), ("there", ~here)):
            found.append(series(values, f"case{number}", "deepspeed", np.flatnonzero(nights), name))
    return len(named(found))


def share(found: int, count: int, scale: float = 1.0) -> tuple[float, float, float]:
    """``found`` of ``count``, with the 95 % interval of the binomial distribution (Clopper and Pearson)."""
    low, high = binomtest(min(found, count), count).proportion_ci()
    return scale * found / count, scale * low, scale * high


def row(plant: Plant, count: int) -> str:
    late = delays(plant, 1, count)
    soon, later = (share(sum(delay <= most for delay in late), count) for most in (5, 10))
    middle = median(late)
    cells = [f"{each[0]:5.1%} ({each[1]:5.1%} to {each[2]:6.1%})" for each in (soon, later)]
    return f"{plant.step:4.0%}  {plant.noise:5.1%}  {'  '.join(cells)}  {f'{middle:g}' if middle <= 10 else 'none':>6}"


def table(count: int, months: int) -> None:
    print(f"each of {count} series alone in a family of {FAMILY}; false alarms in {months} months of such families")
    print("step  noise  found within 5 nights     within 10 nights          median  false alarms a month")
    for plant in STEPS:
        print(row(plant, count), flush=True)
    for name, kind in KINDS.items():
        alarms = sum(false_alarms(kind, seed) for seed in range(2, 2 + months))
        each, low, high = share(alarms, FAMILY * months, FAMILY)
        line = row(replace(kind, step=0.03), count)
        print(f"{line}  {each:4.1f} ({low:.1f} to {high:4.1f})  {name}", flush=True)
    for nights in (40, 90):
        print(
            f"{row(Plant(step=0.03, history=nights), count)}  {'':17}  after {nights} nights instead of {STEP}",
            flush=True,
        )
    print(f"{mixed(3)} false alarms of 50 cases whose runs two machines took in turn")


def timed(count: int = 5000) -> None:
    found = planted(Plant(0.01, 0.03), count, 4)
    start = time.process_time()
    alarms = trend(found)
    print(
        f"{time.process_time() - start:.1f} s of a core for {count:,} series of {NIGHTS} points, {len(alarms):,} alarms"
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=("table", "time"), help="one alone (default: both)")
    parser.add_argument("--count", type=int, default=200, help="series a row")
    parser.add_argument("--months", type=int, default=2, help="of a family without a step")
    options = parser.parse_args(words)
    if options.part != "time":
        table(options.count, options.months)
    if options.part != "table":
        timed()


if __name__ == "__main__":
    main()
