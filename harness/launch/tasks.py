"""The jobs that ranks run for a case: the checked run, the floor of its precision, and the timed steps."""

import contextlib
import gc
import importlib
import io
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.catalog import load
from harness.launch import widened
from harness.launch.rank import Context
from harness.launch.reordered import Reordered
from harness.meter import memory
from harness.meter.saved import Saved
from harness.meter.traffic import Traffic
from harness.spec import Span, Spans, Topology, Trainer, Unsupported, Workload

TORCH_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
CHECKED_STEPS = 3
WARM_ROUNDS, TIMELINE_ROUNDS = 1, 3
# Of the second the activations too; nothing is collected in them, and the first steps' lazy states exist by then.
MEMORY_STEP, TRAFFIC_STEP = 1, 2


def checked_trainer(
    context: Context,
    build: str,
    variant: Mapping[str, Any],
    workload: Workload,
    topology: Topology,
    data: str,
    keep: bool = True,
) -> dict[str, Any]:
    """A few steps from the same weights on the same batches: losses, memory, traffic; rank 0 keeps the tensors, if
    that is asked."""
    products = _widen(context, workload)
    batch = load(data)
    batches = [batch(workload, step) for step in range(CHECKED_STEPS)]
    gc.collect()
    with memory.gauge() as gauge:
        trainer: Trainer = load(build)(workload, topology, **variant)
        figures: dict[str, Any] = {"losses": [], "meter": memory.meter(), "products": products}
        collected: dict[str, bytes] = {}
        for step, tokens in enumerate(batches):
            traffic = Traffic()
            if step == MEMORY_STEP:
                _settle()  # what was collected in the step before is none of this one's
                gauge.reset()
            if step == TRAFFIC_STEP:
                with traffic, Saved() as saved:
                    loss = trainer.backward(tokens)
                    trainer.update()
                figures |= {"traffic": traffic.by_op, "groups": traffic.by_group, "activations": saved.peak}
            else:
                loss = trainer.backward(tokens)
                if step == 0 and keep:
                    collected["gradient"] = _keep(context, trainer.gradients())
                if step == MEMORY_STEP:
                    _settle()
                    figures["states"] = gauge.current()
                trainer.update()
            if step == MEMORY_STEP:
                _synchronize()
                figures["peak"] = gauge.peak()
            figures["losses"].append(float(loss))
        if keep:
            collected["parameters"] = _keep(context, trainer.parameters())
    padding = getattr(trainer, "padding", None)
    figures["padding"] = int(padding()) if padding else 0
    figures |= {name: getattr(trainer, name, "") for name in ("fallback", "unmetered")}
    figures["tensors"] = collected or None
    return figures


def _widen(context: Context, workload: Workload) -> str:
    """See :mod:`harness.launch.widened`. What the record says of it; empty where there is no need."""
    if workload.dtype != "bf16" or not widened.needed():
        return ""
    if "widened" not in context.state:
        context.state["widened"] = widened.install()
    return widened.NOTE


def _keep(context: Context, tensors: Mapping[str, Tensor]) -> bytes:
    """Rank 0's tensors as bytes at once: kept as tensors they would count as the engine's memory."""
    if context.rank:
        return b""
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu() for name, tensor in tensors.items()}, buffer)
    return buffer.getvalue()


def _settle() -> None:
    """Garbage is no state; and a backend's thread holds its last buffers for a moment after the work is done."""
    _synchronize()
    gc.collect()
    time.sleep(0.02)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def curve(
    context: Context, build: str, variant: Mapping[str, Any], workload: Workload, topology: Topology, data: str
) -> list[float]:
    """The loss of every step of the workload: a learning curve."""
    _widen(context, workload)
    batch = load(data)
    trainer: Trainer = load(build)(workload, topology, **variant)
    losses = []
    for step in range(workload.steps):
        losses.append(float(trainer.backward(batch(workload, step))))
        trainer.update()
    return losses


def plain_trainer(
    context: Context, build: str, variant: Mapping[str, Any], workload: Workload, topology: Topology, data: str
) -> dict[str, Any]:
    """The losses and tensors of a checked run, without its meters."""
    batch = load(data)
    trainer: Trainer = load(build)(workload, topology, **variant)
    losses, collected = [], {}
    for step in range(CHECKED_STEPS):
        losses.append(float(trainer.backward(batch(workload, step))))
        if step == 0:
            collected["gradient"] = _keep(context, trainer.gradients())
        trainer.update()
    return {"losses": losses, "tensors": collected | {"parameters": _keep(context, trainer.parameters())}}


def members(context: Context, **work: Any) -> list[dict[str, Any]]:
    """The plain model once for each honest way to compute the same: what they differ by is the noise floor."""
    return _each(plain_trainer, context, **work)


def curves(context: Context, **work: Any) -> list[list[float]]:
    """The plain model's learning curve once for each honest way to compute it."""
    return _each(curve, context, **work)


def _each(
    job: Callable[..., Any],
    context: Context,
    plain: str,
    ensemble: list[dict[str, Any]],
    workload: Workload,
    topology: Topology,
    data: str,
) -> list[Any]:
    _widen(context, workload)
    found = []
    for member in ensemble:
        options = dict(member)
        work = workload.with_(**options.pop("workload", {}))
        with _reordered(options.pop("reordered", None)):
            found.append(job(context, plain, options, work, topology, data))
    return found


def _reordered(how: Mapping[str, Any] | None) -> contextlib.AbstractContextManager[Any]:
    """Sums in another order, if one is given (:class:`Reordered`)."""
    return Reordered(**how) if how else contextlib.nullcontext()


def function_members(
    context: Context, ensemble: list[dict[str, Any]], variant: Mapping[str, Any], workload: Workload, problem: str
) -> list[dict[str, bytes]]:
    """The problem's plain formula in float64, then in the workload's dtype once for each honest way to compute it."""
    _widen(context, workload)
    plain = importlib.import_module(problem).plain
    drawn = function_inputs(problem, workload, variant)  # rounded: the oracle is given the numbers that the case is
    found = []
    for member in [{"dtype": "fp64"}, *ensemble]:
        dtype = TORCH_DTYPES[member.get("dtype", workload.dtype)]
        inputs, cotangents = (placed(tensors, dtype) for tensors in drawn)
        with _reordered(member.get("reordered")):
            outputs = plain(inputs, **variant)
            gradients = _backward(outputs, inputs, cotangents)
        found.append({"output": _keep(context, outputs), "gradient": _keep(context, gradients)})
    return found


def checked_function(
    context: Context,
    build: str,
    variant: Mapping[str, Any],
    workload: Workload,
    topology: Topology,
    problem: str,
    keep: bool = True,
) -> dict[str, Any]:
    """One forward and backward on the problem's inputs: outputs, input gradients, bytes saved between the two."""
    products = _widen(context, workload)
    function = load(build)(workload, topology, **variant)
    inputs, cotangents = (_part(function, each) for each in function_inputs(problem, workload, variant))
    for _ in range(2):  # the first call may compile or allocate for good
        _forward_backward(function, inputs, cotangents)
    _settle()  # what the calls before held is none of this one's
    with memory.gauge() as gauge:
        gauge.reset()
        outputs = function(inputs)
        _settle()
        figures: dict[str, Any] = {"saved": gauge.current(), "meter": memory.meter(), "products": products}
        gradients = _backward(outputs, inputs, cotangents)
        _synchronize()
        figures["peak"] = gauge.peak()
    traffic = Traffic()
    if topology.world_size > 1:  # one rank sends nothing, and some compiled kernels run under no dispatch mode
        with traffic:
            _forward_backward(function, inputs, cotangents)
    figures |= {
        "traffic": traffic.by_op,
        "groups": traffic.by_group,
        "padding": 0,
        "losses": [],
        "fallback": getattr(function, "fallback", ""),
    }
    whole = getattr(function, "gather", dict)
    kept = {"output": outputs, "gradient": gradients} if keep else {}
    figures["tensors"] = {kind: _keep(context, whole(tensors)) for kind, tensors in kept.items()} or None
    return figures


def _part(function: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """This rank's part of them, where the function is spread over ranks."""
    if not hasattr(function, "split"):
        return tensors
    parts = function.split({name: tensor.detach() for name, tensor in tensors.items()})
    return {n: part.clone().requires_grad_(tensors[n].requires_grad) for n, part in parts.items()}


def function_inputs(
    problem: str, workload: Workload, variant: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The problem's inputs on this device in the workload's dtype, and a fixed random cotangent for each output."""
    module, dtype = importlib.import_module(problem), TORCH_DTYPES[workload.dtype]
    inputs = placed(module.draw(workload, **variant), dtype)
    with torch.no_grad():  # for their shapes
        outputs = module.plain(placed(inputs, torch.float32), **variant)
    generator = torch.Generator().manual_seed(workload.seed)
    noise = {n: torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in outputs.items()}
    return inputs, placed(noise, dtype)


def placed(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """As leaves on this device; those of numbers in ``dtype``."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def place(tensor: Tensor) -> Tensor:
        there = tensor.detach().to(device, dtype if tensor.is_floating_point() else None)
        return there.requires_grad_(tensor.requires_grad)

    return {name: place(tensor) for name, tensor in tensors.items()}


def _forward_backward(function: Any, inputs: dict[str, Tensor], cotangents: dict[str, Tensor]) -> None:
    _backward(function(inputs), inputs, cotangents)


def _backward(
    outputs: Mapping[str, Tensor], inputs: dict[str, Tensor], cotangents: dict[str, Tensor]
) -> dict[str, Tensor]:
    names = [name for name, tensor in inputs.items() if tensor.requires_grad]
    live = [name for name, out in outputs.items() if out.requires_grad]
    gradients = torch.autograd.grad(
        [outputs[name] for name in live],
        [inputs[name] for name in names],
        [cotangents[name].to(outputs[name].dtype) for name in live],
    )
    return dict(zip(names, gradients, strict=True))


def prepare_trainer(
    context: Context, build: str, variant: Mapping[str, Any], workload: Workload, topology: Topology, data: str
) -> None:
    """Builds what :func:`timed` steps, and takes the steps in which engines still allocate and compile."""
    batch = load(data)
    trainer: Trainer = load(build)(workload, topology, **variant)
    batches = [batch(workload, step) for step in range(4)]

    def step(index: int) -> None:
        trainer.backward(batches[index % len(batches)])
        trainer.update()

    _ready(context, step)


def timeline(
    context: Context,
    build: str,
    variant: Mapping[str, Any],
    workload: Workload,
    topology: Topology,
    data: str,
    cores: int,
) -> list[list[Span]]:
    """What this rank did when in each of some backward passes, for engines that run a schedule."""
    batch = load(data)
    trainer: Any = load(build)(workload, topology, **variant)
    if not hasattr(trainer, "record"):
        raise Unsupported("this engine runs no schedule that could be watched")
    shared = topology.world_size > cores
    rounds: list[Spans] = []
    gc.collect()
    gc.freeze()
    for index in range(WARM_ROUNDS + TIMELINE_ROUNDS):
        rounds.append(Spans(time.thread_time if shared else time.monotonic))
        trainer.record(rounds[-1])
        tokens = batch(workload, index % 4)
        dist.barrier()
        trainer.backward(tokens)
        trainer.record(None)
        trainer.update()
    return [list(spans) for spans in rounds[WARM_ROUNDS:]]


def prepare_function(
    context: Context, build: str, variant: Mapping[str, Any], workload: Workload, topology: Topology, problem: str
) -> None:
    """The same for a Function: a step is one forward and backward."""
    function = load(build)(workload, topology, **variant)
    inputs, cotangents = (_part(function, each) for each in function_inputs(problem, workload, variant))
    _ready(context, lambda index: _forward_backward(function, inputs, cotangents))


def _ready(context: Context, step: Callable[[int], None]) -> None:
    context.state["step"] = step
    timed(context, 0, 3)
    gc.freeze()  # what lives now lives as long as the world: later collections need not look through it
    _bind(context)  # threads that the engine has started stay free


def _bind(context: Context) -> None:
    """Rank r of a CPU world stays on the r-th core: one may be a third slower than another for seconds, and engines
    that are compared must meet the same. Ranks that take every core do so anyhow: they are left free."""
    cores = sorted(os.sched_getaffinity(0))
    if context.size < len(cores) and not torch.cuda.is_available():
        os.sched_setaffinity(0, {cores[context.rank]})


def timed(context: Context, warm: int, steps: int) -> list[float]:
    """Seconds of each step on this rank, device-synchronised, after ``warm`` steps that are not counted."""
    step = context.state["step"]
    for index in range(warm):
        step(index)
    _synchronize()
    seconds = []
    gc.collect()
    gc.disable()  # a collection inside one engine's step would be charged to that engine
    try:
        for index in range(steps):
            start = time.perf_counter()
            step(index)
            _synchronize()
            seconds.append(time.perf_counter() - start)
    finally:
        gc.enable()
    return seconds


def ceiling(context: Context, workload: Workload) -> float:
    """FLOP/s of a large matrix product in the workload's dtype on this rank: the most that is to be had."""
    from harness.meter.flops import matmul_ceiling

    return matmul_ceiling(workload.dtype)
