"""Timed steps: the ranks of a block prepare their engines once and then step in turns."""

import gc
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from harness.catalog import load
from harness.launch.checked import synchronize
from harness.launch.fresh import Fresh
from harness.launch.problem import forward_backward
from harness.launch.rank import Context
from harness.spec import Topology, Trainer, Workload
from harness.spec.run import Ceilings, Profile

BATCHES = 4  # the steps cycle through them


class Turn(NamedTuple):
    """``seconds`` of each counted step on this rank; ``ratio``: see :meth:`harness.launch.fresh.Fresh.ratio`."""

    seconds: list[float]
    ratio: float | None


def trainer(
    context: Context,
    build: str,
    variant: Mapping[str, Any],
    workload: Workload,
    topology: Topology,
    data: str,
    options: Mapping[str, Any],
) -> None:
    """Builds the trainer for :func:`steps`, and runs the steps in which engines still allocate and compile."""
    batch = load(f"{data}:batch")
    trainer: Trainer = load(build)(workload, topology, **variant)
    batches = [batch(workload, step, **options) for step in range(BATCHES)]

    def step(index: int) -> None:
        trainer.backward(batches[index % BATCHES])
        trainer.update()

    _ready(context, step)


def function(
    context: Context,
    build: str,
    variant: Mapping[str, Any],
    workload: Workload,
    topology: Topology,
    problem: str,
    exact: tuple[str, ...],
    oracle: bool,
) -> None:
    """The same for a Function: a step is one forward and backward pass."""
    function = load(build)(workload, topology, **variant)
    fresh = context.state["fresh"] = Fresh(function, problem, workload, variant, exact, oracle)
    drawn = [fresh.draw(workload.seed + index)[1] for index in range(BATCHES)]
    _ready(context, lambda index: forward_backward(function, drawn[index % BATCHES]))


def _ready(context: Context, step: Callable[[int], Any]) -> None:
    context.state["step"] = step
    for index in range(3):
        step(index)
    gc.freeze()  # current objects live as long as the world: later collections skip them
    _bind(context)  # threads of the engine keep all cores


def _bind(context: Context) -> None:
    """Binds rank r of a CPU world to the r-th core: one core may be a third slower than another for seconds, and the
    compared engines must run under the same conditions. Ranks that use every core anyway are not bound."""
    cores = sorted(os.sched_getaffinity(0))
    if context.size < len(cores) and not torch.cuda.is_available():
        os.sched_setaffinity(0, {cores[context.rank]})


def steps(context: Context, warm: int, steps: int, seed: int) -> Turn:
    """Times steps, device-synchronised, after ``warm`` uncounted steps. A Function's last step computes inputs that are
    drawn now, from a ``seed`` that no rank knew before, and its results are checked afterwards."""
    step, fresh = context.state["step"], context.state.get("fresh")
    calls = [partial(step, index) for index in range(steps)]
    if fresh:
        drawn = fresh.draw(seed)
        calls[-1] = partial(forward_backward, fresh.function, drawn[1])
    for index in range(warm):
        step(index)
    synchronize()
    seconds, results = [], None
    gc.collect()
    gc.disable()  # a collection inside one engine's step would be charged to that engine
    try:
        for call in calls:
            start = time.perf_counter()
            results = call()
            synchronize()
            seconds.append(time.perf_counter() - start)
    finally:
        gc.enable()
    return Turn(seconds, fresh.ratio(drawn, results) if fresh else None)


def ceilings(context: Context, workload: Workload) -> Ceilings:
    """What the machine attains in the workload's dtype, see :mod:`harness.meter.ceilings`."""
    from harness.meter.ceilings import ceilings

    return ceilings(workload.dtype)


def anatomy(context: Context, steps: int) -> Profile:
    """Where the time of some steps goes."""
    from harness.meter.anatomy import profiled

    return profiled(context.state["step"], steps)
