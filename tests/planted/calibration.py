"""How far honest runs stray, and how far planted faults do, in noise floors: what the margin of parity rests on.

``python -m tests.planted.calibration`` prints the table that the report shows and ``test_calibration.py`` holds the
margin to; with ``--measure`` it is measured anew, in a quarter of an hour on two cores. Honest are every topic's
reference, and a reference with other sums or more threads; each with several seeds, under each instruction set that
this CPU has.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.judge.calibration import TABLE, read
from harness.judge.parity import MARGIN
from harness.plan import cases as plan
from harness.spec import Card, Case, Engine
from tests import labs
from tests.planted.faults import BROKEN, EVERY, FAULTS

CAPABILITIES = ("default", "avx2", "avx512")  # each CPU that has one has those before it
DTYPES = ("fp32", "bf16")
RANKS = 4
TURNS = 10
WRONG = ("accumulate_means",)  # a reference that is there to be wrong
HONEST = ("two_threads", "other_sums")  # of tests.planted.honest
Row = dict[str, Any]


def honest(seeds: Iterable[int]) -> tuple[dict[str, Card], list[Case]]:
    """Every variant of every reference, and the honest twins, in each precision: a tenth of them a seed, in turn."""
    request = plan.Request(depth="quick", ranks=RANKS, engines=("reference",))
    cards = plan.cards(request)
    cases = [case for case in plan.cases(request, cards) if case.variant not in WRONG]
    ddp = next(case for case in cases if case.topic == "data_parallel")
    twins = {name: Engine(f"{__package__}.honest:{name}") for name in HONEST}
    cards["data_parallel"] = replace(cards["data_parallel"], engines=cards["data_parallel"].engines | twins)
    cases += [replace(ddp, engine=name) for name in HONEST]
    found = [
        replace(case, workload=case.workload.with_(name=f"{case.workload.name}_seed{seed}", seed=seed, dtype=dtype))
        for seed in seeds
        for case in cases[seed % TURNS :: TURNS]
        for dtype in DTYPES
        if "parity" in plan.measures(case, request, cards[case.topic])
    ]
    return cards, [case for case in found if case.topology.world_size <= RANKS and not _ordered(case)]


def _ordered(case: Case) -> bool:
    """Whether rounding orders close numbers anew, and so sends tokens to other experts, keeps other singular values or
    takes other four-bit codes: a grid has none of these in low precision."""
    routed = case.topic == "hybrid_3d" and case.topology.ep > 1
    chosen = routed or case.topic == "adalora" or case.variant.startswith("loftq")
    return chosen and case.workload.dtype == "bf16"


def faulty() -> tuple[dict[str, Card], list[Case]]:
    """Every planted fault of parity as a variant of its own, in each precision in which it must fail."""
    return BROKEN, [planted.case(dtype) for planted in EVERY for dtype in DTYPES if planted.figures("parity", dtype)]


def measured(cards: Mapping[str, Card], cases: list[Case]) -> Iterator[Row]:
    """Every figure of parity of these cases, in floors. RuntimeError where one could not be taken."""
    lab = labs.make(cards, capacity=RANKS)
    try:
        lab.runner.expect(cases, cases, parity=True)
        for case in cases:
            for found in lab.measure("parity", case):
                if found.verdict == "skipped":
                    continue
                if found.value is None and case.engine not in FAULTS:
                    raise RuntimeError(f"{case.id}: {found.reason}")
                if found.unit != "× floor" or found.value is None:  # counts of what must be equal have no floor
                    continue
                if "merged" in found.quantity:  # of one topic alone: too few for a line
                    continue
                about = {"case": case.id, "engine": case.engine, "dtype": case.workload.dtype}
                yield {**about, "quantity": found.quantity, "ratio": found.value, "reason": found.reason}
    finally:
        lab.runner.close()


def table(rows: Iterable[Row]) -> list[Row]:
    """By quantity and precision: the largest ratio of honest runs, the smallest of the faults that it must see, and the
    chance that an honest figure exceeds the margin."""
    lines: dict[tuple[str, str], Row] = {}
    ratios: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        name, dtype = key = row["quantity"], row["dtype"]
        line = lines.setdefault(key, {"quantity": name, "dtype": dtype, "faults": 0})
        fault = FAULTS.get(row["engine"])
        if fault is None:
            ratios.setdefault(key, []).append(row["ratio"])
            if row["ratio"] == max(ratios[key]):
                line |= {"largest": row["ratio"], "where": row["case"]}
        elif name in fault.figures("parity", dtype):
            line["faults"] += 1
            if row["ratio"] < line.get("smallest", float("inf")):
                line |= {"smallest": row["ratio"], "fault": row["engine"]}
    for key, line in lines.items():
        alike = [ratio for (name, _), found in ratios.items() if kind(name) == kind(key[0]) for ratio in found]
        line |= {"runs": len(ratios[key]), "chance": beyond(alike, MARGIN)}
    return [lines[key] for key in sorted(lines)]


def kind(quantity: str) -> str:
    """Slopes and losses are single numbers, norms are sums of many, and a figure of several steps is the largest of
    them: each have tails alike, in floors."""
    several = "several " if quantity.startswith(("later ", "replayed ")) else ""
    return several + ("slope" if quantity.endswith(" slope") else "loss" if quantity == "loss" else "norm")


def beyond(ratios: list[float], margin: float) -> float:
    """The chance that a figure exceeds the margin, by the largest twentieth of these. Errors are sums of many
    roundings, and so their tail is taken to be exponential, as a Gaussian's is at the most."""
    start = float(np.quantile(ratios, 0.95))
    excess = [ratio - start for ratio in ratios if ratio > start]
    return 0.05 * math.exp((start - margin) / float(np.mean(excess))) if excess else 0.0


def shown(lines: Iterable[Mapping[str, Any]]) -> str:
    head = f"{'quantity':<21} {'dtype':<5} {'honest':>7} {'largest':>8} {'faults':>7} {'smallest':>9} {'chance':>8}"
    rows = [
        f"{line['quantity']:<21} {line['dtype']:<5} {line['runs']:7} {line['largest']:8.2f} {line['faults']:7} "
        f"{line.get('smallest', float('nan')):9.3g} {line['chance']:8.0e}  {line['where']}"
        for line in lines
    ]
    return "\n".join([f"Ratios in floors; the margin is {MARGIN}.", head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure it anew; without it, the table is printed")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--capabilities", default=",".join(CAPABILITIES), help="instruction sets, separated by commas")
    parser.add_argument("--rows", type=Path, default=Path("calibration.jsonl"), help="the file that rows are added to")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # under the instruction set in use
    options = parser.parse_args()
    if options.here:
        _append(options.rows, options.seeds)
        return
    if options.measure:
        has = CAPABILITIES[: CAPABILITIES.index(torch.backends.cpu.get_cpu_capability().lower()) + 1]
        asked = options.capabilities.split(",")
        if lacking := [name for name in asked if name not in has]:
            parser.error(f"this CPU has no {lacking[0]}, but {', '.join(has)}: use another, or name --capabilities")
        for name in asked:
            command = [sys.executable, "-m", __spec__.name, "--here", "--seeds", str(options.seeds)]
            command += ["--rows", str(options.rows)]
            subprocess.run(command, env=os.environ | {"ATEN_CPU_CAPABILITY": name}, check=True)
        found = table(map(json.loads, options.rows.read_text().splitlines()))
        about = {"capabilities": asked, "seeds": options.seeds, "margin": MARGIN}
        about |= {"unmeasured": {}}  # by instruction set: faults that came on a machine without it
        TABLE.write_text(json.dumps(about | {"table": found}, indent=1) + "\n")
    print(shown(read()["table"]))


def _append(path: Path, seeds: int) -> None:
    with path.open("a") as file:
        for cards, cases in (faulty(), honest(range(seeds))):
            for row in measured(cards, cases):
                print(json.dumps(row), file=file, flush=True)


if __name__ == "__main__":
    main()
