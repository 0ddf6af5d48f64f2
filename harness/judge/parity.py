"""Parity against a float64 oracle, in units of the noise floor; no tolerance is typed by hand.

The floor is the error of the plain model in the case's own precision, the worst over an ensemble of honest variants:
other kernels, orders of sums, instruction sets, threads and draws of the model. An engine passes within ``MARGIN``
floors. ``tests/planted/calibration.py`` measures this margin, so that a run of honest engines gives no false alarm. An
error that grows with the size of a buffer is a fault, not rounding, however common it is: a float32 norm whose kernel
adds a million squares one after another is such a fault. The *slope* ⟨x,x*⟩/⟨x*,x*⟩ − 1 averages rounding away, and so
shows errors of scale that a norm cannot show in low precision.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.spec import Measurement
from harness.spec.run import COMPARED

MARGIN = 4.5  # twice the largest ratio of honest runs, half the smallest of planted faults (calibration.json)
Kinds = Mapping[str, Mapping[str, Tensor]]  # gradient, update or output → name → tensor

DRIFT = 0.25  # of a later gradient's error may lie along the gradient
OPTIONAL = ("merged", "unmerged")  # kinds
LATER = "gradient at step"  # kinds of which one measurement tells the worst step
NAMES = 5  # at most this many tensors are named in a message
ALONE = 0.99  # of an error's squares: the other parts are right
SCALED = 0.99  # of an error that lies along the truth: it is one of scale
SIGMAS = 1.5  # least slope in standard errors: with the margin, nearly seven
PARTS = 32  # parts of each tensor, whose errors are taken to be independent
ZERO = 1e-6  # a true tensor below this share of the model's typical element is zero except for round-off


@dataclass(frozen=True)
class Errors:
    """Errors of one run against the oracle, or the worst of an ensemble: relative L2 error by tensor and over all
    tensors together; the slope over all tensors, with the standard error that rounding gives it."""

    tensors: Mapping[str, float]
    slope: float
    total: float
    slope_error: float = 0.0


@dataclass(frozen=True)
class Oracle:
    """The float64 model's results. ``kinds``: ``gradient``, ``update`` or ``output`` → name → tensor. ``exact``:
    outputs that must be equal, by place. ``observed``: by step, the values of :meth:`Trainer.observe`."""

    kinds: Kinds
    losses: Sequence[float] = ()
    exact: Mapping[str, Any] = field(default_factory=dict)
    observed: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class Reference:
    """An oracle with the floors of one precision."""

    oracle: Oracle
    floors: Mapping[str, Errors]
    loss_floor: Sequence[float] = ()
    observed_floor: Mapping[str, float] = field(default_factory=dict)


def errors(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> Errors:
    """Compares every tensor of the oracle. Raises ValueError where a name or a shape differs."""
    if missing := truth.keys() - found.keys():
        given = f", only for {_listed(found)}" if found else ""
        raise ValueError(f"the engine returned nothing for {_listed(missing)}{given}")
    if extra := found.keys() - truth.keys():
        raise ValueError(f"the engine returned {_listed(extra)}, which the model does not have")
    squares = {name: float(tensor.double().square().sum()) for name, tensor in truth.items()}
    typical = sum(squares.values()) / sum(tensor.numel() for tensor in truth.values())
    by_name, off, along = {}, 0.0, []
    for name, tensor in truth.items():
        if found[name].shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(found[name].shape)}, the model's is {tuple(tensor.shape)}")
        exact, got = tensor.double(), found[name].double()
        difference = got - exact
        square = float(difference.square().sum())
        scale = max(squares[name], 0.0)
        if scale <= ZERO**2 * typical * tensor.numel():
            scale = typical * tensor.numel()
        by_name[name] = (square / scale) ** 0.5 if scale else square**0.5
        off += square
        product = (difference * exact).flatten()
        along += pad(product, (0, -product.numel() % PARTS)).view(PARTS, -1).sum(1).tolist()
    whole = sum(squares.values())
    if not whole:
        return Errors(by_name, 0.0, off**0.5)
    # Rounding errors are independent from part to part, so their sums add up as a random walk (a cluster-robust
    # standard error); errors of a wrong scale add up linearly.
    walk = math.fsum(x * x for x in along) ** 0.5
    return Errors(by_name, math.fsum(along) / whole, (off / whole) ** 0.5, walk / whole)


def _listed(names: Collection[str]) -> str:
    """The first names in order, and the number of the others."""
    few = ", ".join(sorted(names)[:NAMES])
    return f"{few} and {len(names) - NAMES} more" if len(names) > NAMES else few


def floor(runs: Sequence[Errors]) -> Errors:
    """The worst of an ensemble of honest runs, figure by figure. A slope may be small by luck, even in all runs if they
    round at the same places, so it counts as at least SIGMAS standard errors."""
    return Errors(
        {name: max(run.tensors[name] for run in runs) for name in runs[0].tensors},
        max(max(abs(run.slope), SIGMAS * run.slope_error) for run in runs),
        max(run.total for run in runs),
    )


def floors(pairs: Sequence[tuple[Kinds, Kinds]]) -> dict[str, Errors]:
    """The floor of an ensemble of honest runs by kind; each run comes with its oracle."""
    return {kind: floor([errors(run[kind], truth[kind]) for run, truth in pairs]) for kind in pairs[0][1]}


def raised(floors: Mapping[str, Errors], rounded: Kinds, truth: Kinds) -> dict[str, Errors]:
    """Raises the slopes of ``floors`` to at least those of another draw, whose results in float64 (``truth``) and in
    the case's precision (``rounded``) are given."""
    slopes = {kind: abs(errors(rounded[kind], exact).slope) for kind, exact in truth.items()}
    return {kind: replace(limit, slope=max(limit.slope, slopes[kind])) for kind, limit in floors.items()}


def unit(values: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> dict[str, float]:
    """The relative error of ``changes`` by tensor if each element of ``values`` is off by a unit in float64's last
    place. A change is the difference of two such values, so even the oracle knows it no better."""
    eps, sizes = torch.finfo(torch.float64).eps, {name: float(change.norm()) for name, change in changes.items()}
    return {name: float(values[name].double().norm()) * eps / size for name, size in sizes.items() if size}


def at_least(floor: Errors, tensors: Mapping[str, float]) -> Errors:
    """Raises each tensor's floor to at least ``tensors``: an ensemble may round a few elements alike by luck."""
    return replace(floor, tensors={name: max(error, tensors.get(name, 0.0)) for name, error in floor.tensors.items()})


def judge(
    found: Kinds, losses: Sequence[float], reference: Reference, ranks: int, together: Collection[str]
) -> list[Measurement]:
    """One measurement for each kind's norm and slope, and one for the losses, in the order in which a run goes wrong.

    The norm of a kind in ``together`` is judged over all tensors together: an adaptive optimizer turns round-off in
    small gradients into whole steps, so single tensors say little. Kinds that only some engines return (``OPTIONAL``)
    are judged where they exist. The gradients of all steps but the first are told together.
    """
    measurements, later = [], []
    # A step's slope may be small by luck, but the steps' slopes are alike. And runs drift apart in few directions, so
    # that a slope takes its share of the norm's error.
    slopes = [
        max(limit.slope, DRIFT * limit.total) for kind, limit in reference.floors.items() if kind.startswith(LATER)
    ]
    for kind in reference.oracle.kinds:
        if kind in OPTIONAL and kind not in found:
            continue
        try:
            slope = max(slopes) if kind.startswith(LATER) else reference.floors[kind].slope
            limit = replace(reference.floors[kind], slope=slope)
            pair = _judged(kind, found[kind], losses, reference, limit, ranks, kind in together)
        except (KeyError, ValueError) as problem:
            missing = "the engine returned nothing" if isinstance(problem, KeyError) else problem
            pair = [Measurement("parity", kind, None, "× floor", "fail", f"{kind}: {missing}")]
        if kind.startswith(LATER):
            later.append(pair)
        else:
            measurements += pair
    if later:
        place = next(index for index, each in enumerate(measurements) if each.quantity == "update")
        measurements[place:place] = [
            _of_all(name, steps)
            for name, slope in (("later gradients", False), ("later gradients slope", True))
            if (steps := [m for pair in later for m in pair if m.quantity.endswith("slope") == slope])
        ]
    if reference.oracle.losses:
        off = [abs(got / true - 1.0) for got, true in zip(losses, reference.oracle.losses, strict=True)]
        bound = max(reference.loss_floor)
        ratios_by_step = [_ratio(value, bound) for value in off]
        step = max(range(len(off)), key=lambda index: ratios_by_step[index])
        measurement = _measurement(
            "loss", ratios_by_step[step], off[step], bound, bound, "", _first_loss(losses, reference)
        )
        curves = {"losses": list(losses), "oracle_losses": list(reference.oracle.losses)}
        measurements.append(measurement.but(detail={**measurement.detail, **curves}))
    return measurements


def _judged(
    kind: str,
    got: Mapping[str, Tensor],
    losses: Sequence[float],
    reference: Reference,
    limit: Errors,
    ranks: int,
    together: bool,
) -> list[Measurement]:
    """The norm's and the slope's measurement. ``limit``: the floor."""
    truth = reference.oracle.kinds[kind]
    error = errors(got, truth)
    if together:
        name = max(error.tensors, key=lambda key: error.tensors[key])
        norm, size, bound = _ratio(error.total, limit.total), error.total, limit.total
    else:
        ratios = {name: _ratio(value, limit.tensors[name]) for name, value in error.tensors.items()}
        name = max(ratios, key=lambda key: ratios[key])
        norm, size, bound = ratios[name], error.tensors[name], limit.tensors[name]
    where = _where(kind, name, got[name], truth[name], losses, reference, ranks)
    if abs(error.slope) > SCALED * error.total:
        where += f"; every {kind.partition(' at ')[0]} × {1 + error.slope:.4g}"
    found = _measurement(kind, norm, size, bound, limit.slope, name, where)
    # Chance moves a slope by its own standard error, which may exceed the floor by as much as the norm may.
    chance = max(limit.slope, min(SIGMAS * error.slope_error, MARGIN * limit.slope))
    slope = _ratio(abs(error.slope), chance)
    found_slope = _measurement(f"{kind} slope", slope, abs(error.slope), chance, chance, "", where)
    return [found, found_slope.but(detail={**found_slope.detail, "standard_error": error.slope_error})]


def _of_all(quantity: str, steps: Sequence[Measurement]) -> Measurement:
    """The worst step's figure; if any fails, with the first divergence of the first that does."""
    failed = [step for step in steps if step.verdict == "fail"]
    if absent := next((step for step in failed if step.value is None), None):
        return absent.but(quantity=quantity)
    found = max(steps, key=lambda step: step.value or 0.0)
    if not failed or found is failed[0]:
        return found.but(quantity=quantity)
    first = failed[0].detail["first_divergence"]
    reason = found.reason.replace(found.detail["first_divergence"], first)
    return found.but(quantity=quantity, reason=reason, detail={**found.detail, "first_divergence": first})


def replicas(ranks: Sequence[Sequence[Mapping[str, bytes]]]) -> Measurement:
    """Whether all ranks that return a tensor have the same bits of it after each step. ``ranks``: by rank and step, the
    digest of each tensor of the weights."""
    first, text, count = ranks[0], "all ranks have the same weights, bit by bit", 0
    for step, mine in enumerate(first, start=1):
        off = {
            rank: sorted(name for name, digest in other[step - 1].items() if mine.get(name, digest) != digest)
            for rank, other in enumerate(ranks)
        }
        if wrong := {rank: names for rank, names in off.items() if names}:
            rank, names = next(iter(wrong.items()))
            count = sum(map(len, wrong.values()))
            text = f"after step {step}, rank {rank}'s copy of {_listed(names)} differs from rank 0's"
            break
    return Measurement("parity", "replicas", float(count), "tensors", "fail" if count else "pass", text, bound=0.0)


def equal(found: Mapping[str, Any], truth: Mapping[str, Any]) -> list[Measurement]:
    """One measurement for all outputs that must be equal (texts and integers among them); none if there are no such
    outputs."""
    if not truth and not found:
        return []
    wrong = [place for place in sorted(truth.keys() | found.keys()) if found.get(place) != truth.get(place)]
    text = f"{len(wrong)} of {len(truth)} exact outputs differ"
    if wrong:
        text += f", first {wrong[0]}: {_short(found.get(wrong[0]))} instead of {_short(truth.get(wrong[0]))}"
    return [Measurement("parity", "exact", float(len(wrong)), "outputs", "fail" if wrong else "pass", text, bound=0.0)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _ratio(value: float, bound: float) -> float:
    """Error ÷ floor. An error below float64's own resolution counts as 0, whatever the floor."""
    if not value <= float("inf"):  # NaN
        return float("inf")
    return value / max(bound, 1e-15)


def _measurement(
    quantity: str, ratio: float, error: float, limit: float, slope: float, name: str, where: str
) -> Measurement:
    resolution = 2 * MARGIN * slope  # exactly at the bound, chance would decide
    good = ratio <= MARGIN
    text = f"{quantity} error {error:.2g} = {ratio:.2g} × floor {limit:.2g} (bound {MARGIN:g} ×)"
    if name:
        text += f", worst in {name}"
    text += f"; a scale error of {resolution:.1g} would have been visible"
    if not good:
        text += f"; first divergence: {where}"
    detail = {"error": error, "floor": limit, "resolution": resolution, "tensor": name}
    if not good:
        detail["first_divergence"] = where
    verdict = "pass" if good else "fail"
    return Measurement("parity", quantity, ratio, "× floor", verdict, text, bound=MARGIN, detail=detail)


def _first_loss(losses: Sequence[float], reference: Reference) -> str:
    bound = MARGIN * max(reference.loss_floor)
    for step, (got, true) in enumerate(zip(losses, reference.oracle.losses, strict=True), start=1):
        if not abs(got / true - 1.0) <= bound:
            return f"step {step}, loss {got:.6g} instead of {true:.6g}"
    return "all losses agree"


def _where(
    kind: str, name: str, got: Tensor, true: Tensor, losses: Sequence[float], reference: Reference, ranks: int
) -> str:
    """Step, tensor and part. The error's place among equal parts of the tensor shows whether only one shard is
    wrong."""
    kind, _, step = kind.partition(" at ")
    text = f"{kind} of {name}"
    if reference.oracle.losses:  # a Trainer
        first = _first_loss(losses, reference) if kind == "update" else ""
        earlier = f"{first}; " if first.startswith("step") else ""
        text = f"{earlier}{step or (f'after step {COMPARED}' if kind == 'update' else 'step 1')}, {text}"
    return f"{text}{_part(got.double() - true.double(), ranks)}"


def _part(off: Tensor, ranks: int) -> str:
    """Which of ``ranks`` equal parts has the error ``off``, cut along any dim or flat."""
    if ranks == 1 or off.numel() < ranks:
        return ""
    cuts = {f" along dim {dim}": off.tensor_split(ranks, dim) for dim in range(off.dim()) if off.shape[dim] >= ranks}
    for along, pieces in {**cuts, " of the flat tensor": off.flatten().tensor_split(ranks)}.items():
        parts = [float(piece.square().sum()) for piece in pieces]
        if max(parts) > ALONE * sum(parts):
            part = parts.index(max(parts))
            return f", only in part {part + 1} of {ranks}{along} (rank {part}'s, where parts are in order)"
    return ", all over the tensor"
