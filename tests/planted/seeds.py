"""Searches for false alarms: every reference at quick depth, with the seed of its work raised by each number given.

    python -m tests.planted.seeds 1 2 3 4 5 6 7 8 9 10

A reference is right with any seed, so whatever fails is an alarm without a cause. Work whose seed is a part of it, such
as a choice of skipped layers that differs by rank, keeps its own. Times are left out: they decide nothing on a CPU.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace

import pytest

from harness.plan import plan
from harness.spec import Case, Workload

SUITES = ["suites", "-q", "--depth", "quick", "--engines", "reference", "-m", "not throughput and not bottleneck"]
LARGEST = 2**31  # leaves room for the numbers that a topic adds


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="+", type=int, metavar="SEED", help="what is added to each seed, 1 or more")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--topics", help="names, separated by commas (default: all)")
    options = parser.parse_args(words)
    if bad := [seed for seed in options.seeds if not 0 < seed < LARGEST]:
        parser.error(f"a seed is from 1 to {LARGEST - 1}, not {bad[0]}")
    topics = ["--topics", options.topics] if options.topics else []
    if options.here:
        return _session(options.seeds[0], topics)
    ends = {}
    for seed in options.seeds:
        print(f"seed {seed}", flush=True)
        ends[seed] = subprocess.run([sys.executable, "-m", __spec__.name, "--here", str(seed), *topics]).returncode
    print(*(f"seed {seed}: exit {end}" for seed, end in ends.items()), sep="\n")
    return max(ends.values())


def _session(seed: int, topics: Sequence[str]) -> int:
    """One session of the suites, in a process of its own, into a store that is thrown away."""
    every = plan.every

    def reseeded(*given: object) -> list[Case]:
        return [replace(case, workload=_raised(case.workload, seed)) for case in every(*given)]  # type: ignore[arg-type]

    plan.every = reseeded
    with tempfile.TemporaryDirectory() as folder:
        return pytest.main([*SUITES, *topics, "--store", f"sqlite:///{folder}/store.db"])


def _raised(workload: Workload, seed: int) -> Workload:
    return workload if workload.seed else workload.with_(seed=seed)


if __name__ == "__main__":
    sys.exit(main())
