"""Timed blocks: all engines of one topic, topology and workload, in interleaved rounds.

Every engine's ranks stay up for the whole block, and each round visits all engines in another order, so that the
machine's drift affects all alike; each switch is followed by uncounted steps.
"""

import random
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from harness.catalog import load
from harness.judge import speed
from harness.launch.base import Launcher, Watch, World
from harness.launch.outcome import Done, Job
from harness.meter.flops import step_flops
from harness.run.oracle import no_run, trouble
from harness.spec import Card, Case, Functions, Measurement, Topology, Trainers, Workload
from harness.spec.requires import library, missing
from harness.spec.run import Ceilings, Profile

TASKS = "harness.launch.timed"
ROUNDS = 7  # rounds if fewer cannot separate the engines; ten decide no more
# Warm-up steps and counted steps of an engine's turn. A core changes its speed within a few turns, so CPU turns are
# short; a GPU that waited for its peers takes longer to reach its clock rate.
TURN = {"cpu": {"warm": 1, "steps": 2}, "cuda": {"warm": 2, "steps": 6}}
ATTEMPTS = 3 * ROUNDS  # the most rounds: a disturbed round is repeated, and a noisy machine needs more
PATIENCE = 5.0  # seconds of a block in which a noisy machine may take further rounds
FEWEST = 5  # the fewest rounds that can judge a block
LIMIT = 30.0  # seconds after which a block ends if it has FEWEST rounds; after twice as long it always ends
PROFILED = 5  # steps that are profiled afterwards
BRIEF = 0.05  # seconds: a shorter step is slowed by caches that hold another engine's data

SMALL = 10**8  # parameters of a model that fits on a device many times

BlockKey = tuple[str, str, Topology, Workload]


@dataclass
class Block:
    """Seconds per step of each case, round by round, and the reason where a case has none. ``ratios``: of each
    Function's case, :meth:`harness.launch.fresh.Fresh.ratio` in each turn."""

    rounds: dict[str, list[list[float]]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    problems: dict[str, Measurement] = field(default_factory=dict)
    cases: tuple[Case, ...] = ()
    spoilt: int = 0
    trouble: str = ""
    ceilings: list[Ceilings] = field(default_factory=list)  # of each rank
    profiles: dict[str, list[Profile]] = field(default_factory=dict)  # of each rank, by case


def small(case: Case) -> bool:
    """Whether ranks of other cases also fit on its devices."""
    return case.workload.model.parameters < SMALL


def block_key(case: Case) -> BlockKey:
    """The cases timed together share this key: a large model has one block per variant, since the devices could not
    hold all engines."""
    return case.topic, "" if small(case) else case.variant, case.topology, case.workload


def adapters(cases: Iterable[Case], cards: Mapping[str, Card], cuda: bool) -> dict[str, list[str]]:
    """The modules of each library that adapt it to these cases, as far as they can be imported here."""
    found: dict[str, list[str]] = {}
    for name, topic in dict.fromkeys((case.engine, case.topic) for case in cases):
        engine = cards[topic].engines[name]
        if not missing(engine, cuda):
            found.setdefault(library(name, engine), []).append(engine.build.partition(":")[0])
    return found


def world_of(launcher: Launcher, case: Case, card: Card) -> World:
    """Fresh ranks for a case, forked from the server that has imported the engine's library."""
    engine = card.engines[case.engine]
    return launcher.world(case.topology.world_size, library(case.engine, engine), engine.build.partition(":")[0])


Begin = Callable[[Callable[[], Measurement | None]], Future[Measurement | None]]


def run_block(
    launcher: Launcher,
    cases: Sequence[Case],
    jobs: Mapping[str, Job],
    card: Card,
    timeout: float,
    begin: Begin,
) -> Block:
    """Prepares every case, as many at once as ``begin`` permits, then times them round by round. Disturbed rounds are
    repeated up to a limit."""
    block = Block(cases=tuple(cases))
    worlds: dict[str, World] = {}

    def prepare(case: Case) -> Measurement | None:
        world = worlds[case.id] = world_of(launcher, case, card)
        return trouble(world.run(jobs[case.id], timeout))

    try:
        begun = {case.id: begin(partial(prepare, case)) for case in cases}
        for case in cases:
            problem = begun[case.id].result()
            if problem:
                block.problems[case.id] = problem
                worlds.pop(case.id).close()
            else:
                block.rounds[case.id] = []
        if worlds:
            _time(block, worlds, timeout, launcher)
    finally:
        for world in list(worlds.values()):  # after an interruption some may still be running
            world.close()
    return block


def _time(block: Block, worlds: dict[str, World], timeout: float, launcher: Launcher) -> None:
    case = block.cases[0]
    first = next(iter(worlds))
    found = worlds[first].run(Job(f"{TASKS}:ceilings", {"workload": case.workload}), timeout)
    block.ceilings = [outcome.value for outcome in found if isinstance(outcome, Done)]
    problem = trouble(found)
    if problem:  # the world is gone, with the prepared engine
        block.problems[first] = problem
        block.rounds.pop(first)
        worlds.pop(first)
    order, watch = list(worlds), launcher.watch()
    shuffle, start = random.Random(0), time.monotonic()
    for _ in range(ATTEMPTS):
        if not worlds or _enough(block, time.monotonic() - start):
            break
        shuffle.shuffle(order)
        turn = {**_turn(block, launcher.device), "seed": secrets.randbits(32)}
        for name, seconds in _round(block, worlds, order, turn, timeout, watch).items():
            block.rounds[name].append(seconds)
    for name, world in worlds.items():
        found = world.run(Job(f"{TASKS}:anatomy", {"steps": PROFILED}), timeout)
        if not trouble(found):
            block.profiles[name] = [outcome.value for outcome in found if isinstance(outcome, Done)]


def _turn(block: Block, device: str) -> dict[str, int]:
    """The steps of an engine's next turn: if every step is long, one is enough and needs no warm-up. Before the first
    round, a step may be short."""
    shortest = min((min(steps) for rounds in block.rounds.values() for steps in rounds), default=0.0)
    return {"warm": 0, "steps": 1} if device == "cpu" and shortest >= BRIEF else TURN[device]


def _round(
    block: Block,
    worlds: dict[str, World],
    order: Sequence[str],
    turn: dict[str, int],
    timeout: float,
    watch: Watch,
) -> dict[str, list[float]]:
    """Seconds of the steps of each case's turn, by its slowest rank; empty if the round was disturbed. A failing case
    leaves the block."""
    watch.disturbance()
    times = {}
    for name in [name for name in order if name in worlds]:
        outcomes = worlds[name].run(Job(f"{TASKS}:steps", turn), timeout)
        problem = trouble(outcomes)
        if problem:
            block.problems[name] = problem
            block.rounds.pop(name)
            worlds.pop(name).close()
            continue
        turns = [outcome.value for outcome in outcomes if isinstance(outcome, Done)]
        times[name] = [max(step) for step in zip(*(turn.seconds for turn in turns), strict=True)]
        if turns[0].ratio is not None:
            block.ratios.setdefault(name, []).append(turns[0].ratio)
    if spoilt := watch.disturbance():
        block.spoilt, block.trouble = block.spoilt + 1, spoilt
        return {}
    return times


def _enough(block: Block, seconds: float) -> bool:
    """Whether the engines can be separated, or the time limit is reached."""
    good = min(len(rounds) for rounds in block.rounds.values())
    if seconds > LIMIT:
        return good >= FEWEST or seconds > 2 * LIMIT
    if good < FEWEST:
        return False
    return (good >= ROUNDS and seconds > PATIENCE) or max(speed.effects(block.rounds).values()) <= speed.DECIDABLE / 2


def case_flops(case: Case, card: Card) -> float | None:
    """FLOPs of one of the case's steps over all ranks: a Trainer's are a decoder's, to which its topic may add, and a
    Function counts its own. None if it does not."""
    contract = card.contract
    count = contract.flops if isinstance(contract, Trainers | Functions) else ""
    counted = float(load(count)(case.workload, **card.variants[case.variant])) if count else None
    return counted if isinstance(contract, Functions) else step_flops(case.workload) + (counted or 0.0)


def judge_block(
    block: Block, case: Case, card: Card, wrong: Collection[str] = (), marked: bool = False
) -> list[Measurement]:
    """The case's measurements, compared with cases of the same variant. ``wrong``: engines that fail parity;
    ``marked``: see :func:`harness.judge.speed.judge`."""
    if case.id in block.problems:
        return [block.problems[case.id].but(measure="throughput")]
    fresh = [speed.fresh(block.ratios[case.id])] if case.id in block.ratios else []
    good = min((len(rounds) for rounds in block.rounds.values()), default=0)
    if good < FEWEST:
        reason = f"{good} rounds within {2 * LIMIT:g} s; {FEWEST} are needed"
        if block.spoilt:
            reason += f"; {block.spoilt} more were disturbed ({block.trouble}): run again on an idle machine"
        return [no_run("invalid", reason).but(measure="throughput"), *fresh]
    peers = {c.engine: block.rounds[c.id] for c in block.cases if c.variant == case.variant and c.id in block.rounds}
    ceiling = sum(rank.flops for rank in block.ceilings)
    about = case.workload.tokens, case_flops(case, card), ceiling, block.spoilt
    return [*speed.judge(case.engine, peers, *about, wrong, marked), *fresh]
