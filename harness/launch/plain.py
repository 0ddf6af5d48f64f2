"""Runs the dense model or the textbook formula in float64, and once for each honest variant of the arithmetic."""

import contextlib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from harness.catalog import load
from harness.launch.checked import Kept, widen
from harness.launch.problem import TORCH_DTYPES, Drawn, backward, leaves
from harness.launch.rank import Context
from harness.launch.reordered import Reordered
from harness.spec import Topology, Trainer, Workload
from harness.spec.run import COMPARED, FunctionRun, TrainerRun, steps


def members(context: Context, **work: Any) -> list[TrainerRun]:
    """The dense model's checked run, once for each member of an ensemble: their differences are the noise floor."""
    return _each(_checked, context, **work)


def curves(context: Context, **work: Any) -> list[list[float]]:
    """The dense model's learning curve, once for each member."""
    return _each(_curve, context, **work)


def function_members(
    context: Context,
    ensemble: list[dict[str, Any]],
    variant: Mapping[str, Any],
    workload: Workload,
    problem: str,
    exact: tuple[str, ...],
) -> list[FunctionRun]:
    """The problem's plain formula in float64, then in the workload's dtype once for each member."""
    widen(context, workload)
    plain = importlib.import_module(problem).plain
    drawn = Drawn.of(problem, workload, variant)  # rounded, since the oracle must get the same numbers as the case
    found = []
    for member in [{"dtype": "fp64"}, *ensemble]:
        mine = drawn.to(TORCH_DTYPES[member.get("dtype", workload.dtype)])
        with _reordered(member.get("reordered")):
            outputs = plain(mine.inputs, **variant)
            gradients = backward(outputs, mine)
        kept, output = Kept(context), leaves(outputs, exact)
        if output.tensors:
            kept.keep("output", lambda output=output: output.tensors)
        if gradients:
            kept.keep("gradient", lambda gradients=gradients: gradients)
        found.append(FunctionRun(tensors=kept.kinds, exact=output.exact))
    return found


def _each(
    job: Callable[..., Any],
    context: Context,
    plain: str,
    ensemble: list[dict[str, Any]],
    options: Mapping[str, Any],
    workload: Workload,
    topology: Topology,
    data: str,
) -> list[Any]:
    widen(context, workload)
    found = []
    for member in ensemble:
        mine = dict(member)
        work = workload.with_(**mine.pop("workload", {}))
        with _reordered(mine.pop("reordered", None)):
            model: Trainer = load(f"{plain}:build")(work, topology, **options, **mine)
            found.append(job(context, model, work, load(f"{data}:batch"), options))
    return found


def _checked(
    context: Context, model: Any, workload: Workload, batch: Callable[..., Any], options: Mapping[str, Any]
) -> TrainerRun:
    losses, observed, kept = [], [], Kept(context)
    for step in range(1, steps(workload) + 1):
        losses.append(float(model.backward(batch(workload, step - 1, **options))))
        kept.keep(f"gradient {step}", model.gradients)
        model.update()
        if step == COMPARED:
            kept.keep(f"parameters {step}", model.parameters)
        if observe := getattr(model, "observe", None):
            observed.append({name: float(value) for name, value in observe().items()})
    if merged := getattr(model, "merged", None):
        kept.keep("merged", merged)
        model.unmerge()
        kept.keep("unmerged", model.frozen)
    return TrainerRun(tensors=kept.kinds, losses=losses, observed=observed)


def _curve(
    context: Context, model: Any, workload: Workload, batch: Callable[..., Any], options: Mapping[str, Any]
) -> list[float]:
    losses = []
    for step in range(workload.steps):
        losses.append(float(model.backward(batch(workload, step, **options))))
        model.update()
    return losses


def _reordered(how: Mapping[str, Any] | None) -> contextlib.AbstractContextManager[Any]:
    """Reorders sums, if an order is given (:class:`Reordered`)."""
    return Reordered(**how) if how else contextlib.nullcontext()
