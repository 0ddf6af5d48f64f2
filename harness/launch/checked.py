"""The checked run: a few steps (or one call) from the same start on the same work, measured in every respect."""

import gc
import hashlib
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.catalog import load
from harness.launch import widened
from harness.launch.problem import Drawn, backward, forward_backward, leaves, part, shared
from harness.launch.rank import Context
from harness.meter import memory
from harness.meter.backward import FirstBackward
from harness.meter.graph import nodes
from harness.meter.traffic import Traffic
from harness.spec import Topology, Trainer, Workload
from harness.spec.run import FunctionRun, Memory, TrainerRun, steps
from harness.spec.run import Traffic as Sent

SETTLED = 4  # the first step that every later one must resemble: by then engines have rebuilt buckets and made states


def trainer(
    context: Context,
    build: str,
    variant: Mapping[str, Any],
    workload: Workload,
    topology: Topology,
    data: str,
    options: Mapping[str, Any],
    keep: bool = True,
) -> TrainerRun:
    """Runs some steps from the same weights on the same batches; rank 0 keeps the tensors if they are asked for.
    ``options`` belong to the dense model and the data."""
    products = widen(context, workload)
    batch, last = load(f"{data}:batch"), steps(workload)
    batches = [batch(workload, step, **options) for step in range(last)]
    gc.collect()
    gc.freeze()  # what exists now is not searched again, which makes each later collection cheap
    run, tensors, changed = TrainerRun(meter=memory.meter(), products=products), Kept(context, keep), set()
    losses, observed, memories, traffics, graph = [], [], [], [], []
    with memory.gauge() as gauge:
        trainer: Trainer = load(build)(workload, topology, **variant)
        frozen = fingerprints(trainer)
        for step, tokens in enumerate(batches, start=1):
            traffic, gradients = Traffic(), partial(tensors.keep, f"gradient {step}", trainer.gradients)
            if step in (SETTLED - 1, SETTLED, last):
                loss, held = _weighed(trainer, tokens, gauge, traffic, gradients)
                memories.append(held)
            else:
                with traffic:
                    loss = float(trainer.backward(tokens))
                gradients()
                with traffic:
                    trainer.update()
            losses.append(loss)
            if step >= SETTLED:
                traffics.append(Sent(traffic.by_op, traffic.by_group))
            tensors.keep(f"parameters {step}", trainer.parameters, replicated=True)
            if observe := getattr(trainer, "observe", None):
                observed.append({name: float(value) for name, value in observe().items()})
            changed |= {name for name, digest in fingerprints(trainer).items() if digest != frozen.get(name)}
            if step in (SETTLED, last):
                settle()  # a backend's thread may still hold a message, and with it the graph that made it
                graph.append(nodes())
        if merged := getattr(trainer, "merged", None):
            tensors.keep("merged", merged)
            trainer.unmerge()  # type: ignore[attr-defined]
            tensors.keep("unmerged", trainer.frozen)  # type: ignore[attr-defined]
    padding = getattr(trainer, "padding", None)
    return replace(
        run,
        memory=memories,
        traffic=traffics,
        fallback=getattr(trainer, "fallback", ""),
        unmetered=getattr(trainer, "unmetered", ""),
        configuration=getattr(trainer, "configuration", ""),
        padding=int(padding()) if padding else 0,
        tensors=tensors.kinds,
        losses=losses,
        observed=observed,
        digests=tensors.digests,
        changed=sorted(changed),
        nodes=graph,
    )


def _weighed(
    trainer: Any, tokens: Any, gauge: memory.Gauge, traffic: Traffic, collect: Callable[[], None]
) -> tuple[float, Memory]:
    """Returns a step's loss and its memory. Gradients are collected while nothing is counted."""
    settle()  # the step before must leave no garbage in this one
    gauge.reset()
    before = gauge.current()

    def held() -> int:
        settle()  # a backend's thread may still hold a message
        return gauge.current()

    with traffic, FirstBackward(held) as first:
        loss = float(trainer.backward(tokens))
    settle()
    states, peak = gauge.current(), gauge.peak()
    collect()
    settle()
    gauge.reset()
    with traffic:
        trainer.update()
    synchronize()
    kept = 0.0 if first.noted is None else first.noted - before
    return loss, Memory(states, kept, max(peak, gauge.peak()))


def function(
    context: Context,
    build: str,
    variant: Mapping[str, Any],
    workload: Workload,
    topology: Topology,
    problem: str,
    exact: tuple[str, ...],
    keep: bool = True,
) -> FunctionRun:
    """One forward and backward pass on the problem's inputs. Returns outputs, input gradients, and the bytes kept
    between the two."""
    products = widen(context, workload)
    function = load(build)(workload, topology, **variant)
    drawn = part(function, Drawn.of(problem, workload, variant))
    for _ in range(2):  # the first call may compile, or allocate permanently
        forward_backward(function, drawn)
    settle()  # the earlier calls must leave no memory in this one
    with memory.gauge() as gauge:
        gauge.reset()
        outputs = function(drawn.inputs)
        settle()
        kept = gauge.current()
        gradients = backward(outputs, drawn)
        synchronize()
        peak = gauge.peak()
    traffic = Traffic()
    if topology.world_size > 1:  # one rank sends nothing, and some compiled kernels do not run under a dispatch mode
        with traffic:
            forward_backward(function, drawn)
    tensors, whole = Kept(context, keep), getattr(function, "gather", dict)
    found = leaves(whole(outputs), exact) if keep else leaves({}, exact)
    if keep and found.tensors:
        tensors.keep("output", lambda: found.tensors)
    if keep and drawn.cotangents:
        tensors.keep("gradient", lambda: whole(shared(function, drawn, gradients)))
    return FunctionRun(
        memory=[Memory(kept=kept, peak=peak)],
        traffic=[Sent(traffic.by_op, traffic.by_group)],
        meter=memory.meter(),
        products=products,
        fallback=getattr(function, "fallback", ""),
        tensors=tensors.kinds,
        exact=found.exact,
    )


class Kept:
    """The first rank's tensors by kind, converted to bytes at once: as tensors they would count as the engine's
    memory. ``digests``: this rank's replicated tensors, of which each rank has its own copy."""

    def __init__(self, context: Context, wanted: bool = True) -> None:
        self.first = context.rank == 0
        self.kinds: dict[str, bytes] | None = {} if wanted else None
        self.digests: list[dict[str, bytes]] = []

    def keep(self, kind: str, give: Any, replicated: bool = False) -> None:
        """All ranks call ``give`` together, since it may gather."""
        if self.kinds is None:
            return
        tensors = give()
        if replicated:
            self.digests.append({name: digest(tensor) for name, tensor in tensors.items()})
        if self.first:
            buffer = io.BytesIO()
            torch.save({name: tensor.detach().cpu() for name, tensor in tensors.items()}, buffer)
            self.kinds[kind] = buffer.getvalue()


def fingerprints(trainer: Any) -> dict[str, bytes]:
    """A digest of each tensor that no step may change."""
    if not hasattr(trainer, "frozen"):
        return {}
    return {name: digest(tensor) for name, tensor in trainer.frozen().items()}


def digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(flat.numpy().data, digest_size=16).digest()


def widen(context: Context, workload: Workload) -> str:
    """Applies :mod:`harness.launch.widened` if it is needed. Returns a note for the record, or an empty text."""
    if not widened.needed(workload.dtype):
        return ""
    if "widened" not in context.state:
        context.state["widened"] = widened.install()
    return widened.note(workload.dtype)


def settle() -> None:
    """Collects garbage, which is not state, and waits a moment for a backend's thread to release its last buffers."""
    synchronize()
    gc.collect()
    time.sleep(0.02)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
