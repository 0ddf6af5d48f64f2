"""Series with planted changes, and how many of them the trend finds, how late, and at the price of which false alarms.

``python -m tests.history.planted`` prints the tables and the time that the trend takes over 5,000 series.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from harness.history import Point, Series
from harness.history.trend import FALSE, trend

NIGHTS, STEP = 60, 40  # the level changes at night STEP
NEAR = 3  # runs: an alarm this near to the step has found it

FAMILY = 500  # series that are judged together


@dataclass(frozen=True)
class Plant:
    """``noise``: standard deviation, relative to the level; ``step``: of the level, at night STEP. ``drift``: of the
    machine over all nights, as a random walk. ``missing``: share of the nights. ``spikes``: share of the nights whose
    figure is a fifth higher."""

    noise: float = 0.01
    step: float = 0.0
    drift: float = 0.0
    missing: float = 0.0
    spikes: float = 0.0
    heavy: bool = False


def planted(plant: Plant, count: int, seed: int, nights: int = NIGHTS, control: bool = False) -> list[Series]:
    """``control``: every series has a reference beside it, with the machine's drift and noise of its own."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        walk = np.cumsum(generator.normal(0, 1, nights)) / nights**0.5 * plant.drift
        kept = np.flatnonzero(generator.random(nights) >= plant.missing)
        for engine in ("deepspeed", "reference") if control else ("deepspeed",):
            noise = generator.standard_t(3, nights) / 3**0.5 if plant.heavy else generator.normal(0, 1, nights)
            values = (1 + plant.noise * noise) * np.exp(walk)
            values[generator.random(nights) < plant.spikes] *= 1.2
            if engine == "deepspeed":
                values[STEP:] *= 1 + plant.step
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
    """The case and the night of each alarm."""
    return {(alarm.series.case, int(alarm.run[3:])) for alarm in trend(found)}


def delays(plant: Plant, seed: int, count: int, control: bool = False, most: int = 20) -> list[int]:
    """Nights with the step until its alarm (``most + 1``: none), each series alone in a family of FAMILY."""
    size = 2 if control else 1
    stepped, found = planted(plant, count, seed, STEP + most, control), []
    flat = [series([1.0] * (STEP + most), f"flat{number}", "torch", range(STEP + most)) for number in range(FAMILY)]
    for number in range(count):
        mine, others = stepped[size * number : size * number + size], flat[: FAMILY - size]
        nights = range(1, most + 1)
        seen = (night for night in nights if any(_near(at) for _, at in named(after(mine, STEP + night) + others)))
        found.append(next(seen, most + 1))
    return found


def false_alarms(plant: Plant, seed: int, count: int = FAMILY, control: bool = False, month: int = 30) -> int:
    """Different alarms in the last ``month`` of the nights, with a look each night: two of one case that are near to
    each other are one."""
    still, alarms = planted(plant, count, seed, control=control), set[tuple[str, int]]()
    for nights in range(NIGHTS - month + 1, NIGHTS + 1):
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


def _near(night: int) -> bool:
    return abs(night - STEP) <= NEAR


def _steps(count: int) -> None:
    print(f"each of {count} series alone in a family of {FAMILY}, false-discovery rate {FALSE:.1%}")
    print("step   noise  within 5 nights  within 20  median delay")
    plants = [Plant(noise, step) for step in (0.01, 0.03, 0.05, 0.10) for noise in (0.005, 0.01, 0.02, 0.05)]
    others = {
        "3 % of spikes": Plant(0.01, 0.03, spikes=0.03),
        "a fifth of the nights missing": Plant(0.01, 0.03, missing=0.2),
        "heavy tails": Plant(0.01, 0.03, heavy=True),
        "drift of 5 %, without a control": Plant(0.01, 0.03, drift=0.05),
        "drift of 5 %, with a control": Plant(0.01, 0.03, drift=0.05),
        "5 % step, drift of 5 %, with a control": Plant(0.01, 0.05, drift=0.05),
    }
    for name, plant in [*(("", plant) for plant in plants), *others.items()]:
        late = delays(plant, 1, count, control="with a" in name)
        soon, ever = (sum(delay <= most for delay in late) / count for most in (5, 20))
        line = f"{plant.step:4.0%}  {plant.noise:5.1%} {soon:15.0%} {ever:10.0%} {median(late):12g}  {name}"
        print(line.rstrip(), flush=True)


def _false(count: int) -> None:
    plants = {
        "noise of 0.5 %": Plant(0.005),
        "noise of 1 %": Plant(0.01),
        "noise of 5 %": Plant(0.05),
        "spikes": Plant(0.01, spikes=0.03),
        "heavy tails": Plant(0.01, heavy=True),
        "missing nights": Plant(0.01, missing=0.2),
        "drift of 5 %, without a control": Plant(0.01, drift=0.05),
        "drift of 5 %, with a control": Plant(0.01, drift=0.05),
    }
    for name, plant in plants.items():
        found = false_alarms(plant, 2, count, control="with a" in name)
        print(f"{found:4} false alarms in a month over {count} series: {name}", flush=True)
    print(f"{mixed(3):4} false alarms of 50 cases whose runs two machines took in turn")


def _time(count: int) -> None:
    found = planted(Plant(0.01, 0.03), count, 4)
    start = time.process_time()
    alarms = trend(found)
    print(
        f"{time.process_time() - start:.1f} s of a core for {count:,} series of {NIGHTS} points, {len(alarms):,} alarms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*", choices=("steps", "false", "time"), default=("steps", "false", "time"))
    parser.add_argument("--count", type=int, default=50, help="series a row of the table of steps")
    options = parser.parse_args()
    if "steps" in options.part:
        _steps(options.count)
    if "false" in options.part:
        _false(FAMILY)
    if "time" in options.part:
        _time(5000)


if __name__ == "__main__":
    main()
