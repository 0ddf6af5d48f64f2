"""Timed steps: the ranks of a block prepare their engines once and then step in turns."""

import gc
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from harness.catalog import load
from harness.launch.checked import synchronize
from harness.launch.problem import Drawn, forward_backward, part
from harness.launch.rank import Context
from harness.spec import Topology, Trainer, Workload

BATCHES = 4  # the steps cycle through them


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
) -> None:
    """The same for a Function: a step is one forward and backward pass."""
    function = load(build)(workload, topology, **variant)
    drawn = part(function, Drawn.of(problem, workload, variant))
    _ready(context, lambda index: forward_backward(function, drawn))


def _ready(context: Context, step: Callable[[int], None]) -> None:
    context.state["step"] = step
    steps(context, 0, 3)
    gc.freeze()  # current objects live as long as the world: later collections skip them
    _bind(context)  # threads of the engine keep all cores


def _bind(context: Context) -> None:
    """Binds rank r of a CPU world to the r-th core: one core may be a third slower than another for seconds, and the
    compared engines must run under the same conditions. Ranks that use every core anyway are not bound."""
    cores = sorted(os.sched_getaffinity(0))
    if context.size < len(cores) and not torch.cuda.is_available():
        os.sched_setaffinity(0, {cores[context.rank]})


def steps(context: Context, warm: int, steps: int) -> list[float]:
    """Seconds of each step on this rank, device-synchronised, after ``warm`` uncounted steps."""
    step = context.state["step"]
    for index in range(warm):
        step(index)
    synchronize()
    seconds = []
    gc.collect()
    gc.disable()  # a collection inside one engine's step would be charged to that engine
    try:
        for index in range(steps):
            start = time.perf_counter()
            step(index)
            synchronize()
            seconds.append(time.perf_counter() - start)
    finally:
        gc.enable()
    return seconds


def ceiling(context: Context, workload: Workload) -> float:
    """FLOP/s of a large matrix product in the workload's dtype on this rank: the attainable maximum."""
    from harness.meter.flops import matmul_ceiling

    return matmul_ceiling(workload.dtype)
