"""What the harness costs: a fresh world, and a step that it times."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from harness import catalog
from harness.judge.speed import ratio
from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done, Job
from harness.spec import Topology, Workload

TASKS = "harness.launch.tasks"
PAIRS, TURNS = 5, 6
MODULE = catalog.PLAIN.partition(":")[0]


def test_a_fresh_world_of_two_adds_less_than_a_quarter_second_to_a_case() -> None:
    with LocalLauncher() as launcher:
        launcher.world(2, "plain", MODULE).close()  # starts the server
        seconds = []
        for _ in range(15):
            start = time.perf_counter()
            world = launcher.world(2, "plain", MODULE)
            outcomes = world.run(Job("harness.launch.rank:echo", {}), timeout=30)
            world.close()
            seconds.append(time.perf_counter() - start)
            assert all(isinstance(outcome, Done) for outcome in outcomes)
    print(f"a fresh world of 2: {statistics.median(seconds):.3f} s at the median")
    assert statistics.median(seconds) < 0.25


def test_a_timed_step_is_as_fast_as_in_a_bare_script() -> None:
    """As ratios of interleaved turns, in several pairs of processes, since where its memory lies can make one process
    slower than another: 2 % are allowed, and only a difference that this does not explain fails."""
    with LocalLauncher() as launcher:
        ours, theirs = zip(*(one_pair(launcher) for _ in range(PAIRS)), strict=True)
    middle, low, high = ratio(ours, theirs)
    print(f"a timed step ÷ a bare one: {middle:.3f} ({low:.3f} to {high:.3f})")
    assert low <= 1.02


def one_pair(launcher: LocalLauncher) -> tuple[list[float], list[float]]:
    """Seconds of a step in a fresh world and in a fresh bare script: the lower quartile, since whatever disturbs a
    step makes it longer."""
    script = [sys.executable, str(Path(__file__).with_name("bare.py"))]
    arguments = {"build": catalog.PLAIN, "variant": {}, "workload": Workload(), "topology": Topology()}
    ours: list[float] = []
    theirs: list[float] = []
    world = launcher.world(1, "plain", MODULE)
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as bare:
        assert bare.stdin
        assert bare.stdout
        world.run(Job(f"{TASKS}:prepare_trainer", arguments | {"data": catalog.DATA}), timeout=60)
        for turn in range(TURNS):
            bare.stdin.write("6\n")
            bare.stdin.flush()
            seconds = [float(second) for second in bare.stdout.readline().split()][2:]
            (outcome,) = world.run(Job(f"{TASKS}:timed", {"warm": 2, "steps": 4}), timeout=60)
            assert isinstance(outcome, Done)
            if turn:  # the first warms both
                theirs += seconds
                ours += outcome.value
        bare.stdin.close()
    world.close()
    return [statistics.quantiles(ours)[0]], [statistics.quantiles(theirs)[0]]
