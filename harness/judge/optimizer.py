"""The engine's updates compared with the textbook optimizer, fed the engine's own gradients.

AdamW divides by the gradient's size: a wrong or missing gradient may hardly change the update, and round-off may grow
to whole steps. So each step is replayed in float64 from the engine's weights before it and its gradients so far, and
only the optimizer's own work is compared. The noise floor comes from the same replay in the precision of the engine's
weights, with three honest orders of the operations.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from harness.judge.parity import MARGIN, Errors, at_least, errors, floor
from harness.spec import Measurement, Workload

Tensors = Mapping[str, Tensor]
Step = Callable[[Tensor, Tensor, "tuple[Tensor, Tensor]", int, Workload], Tensor]


def textbook(w: Tensor, g: Tensor, moments: tuple[Tensor, Tensor], t: int, work: Workload) -> Tensor:
    """The next weights: SGD with weight decay, or AdamW (Loshchilov and Hutter 2019, algorithm 2), at step t ≥ 1.
    ``moments`` m and v are updated in place."""
    if work.optimizer == "sgd":
        return w - work.lr * (g + work.weight_decay * w)
    (m, v), (b1, b2) = moments, work.betas
    m.mul_(b1).add_(g, alpha=1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
    return w - work.lr * (m_hat / (v_hat.sqrt() + work.eps) + work.weight_decay * w)


def decayed_first(w: Tensor, g: Tensor, moments: tuple[Tensor, Tensor], t: int, work: Workload) -> Tensor:
    """The same step with decay first and one factor for both bias corrections, as in fused kernels."""
    if work.optimizer == "sgd":
        return torch.add(w, g.add(w, alpha=work.weight_decay), alpha=-work.lr)
    (m, v), (b1, b2) = moments, work.betas
    m.lerp_(g, 1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    scale = work.lr / (1 - b1**t)
    return (w * (1 - work.lr * work.weight_decay)).addcdiv(m, v.sqrt() / (1 - b2**t) ** 0.5 + work.eps, value=-scale)


def decayed_last(w: Tensor, g: Tensor, moments: tuple[Tensor, Tensor], t: int, work: Workload) -> Tensor:
    """The same step with the bias correction folded into epsilon and the step size (Kingma and Ba 2015, end of section
    2)."""
    if work.optimizer == "sgd":
        return w * (1 - work.lr * work.weight_decay) - g * work.lr
    (m, v), (b1, b2) = moments, work.betas
    m.add_((g - m) * (1 - b1))
    v.add_((g * g - v) * (1 - b2))
    root = (1 - b2**t) ** 0.5
    step: Tensor = m / (v.sqrt() + work.eps * root) * (work.lr * root / (1 - b1**t))
    return w - step - w * (work.lr * work.weight_decay)


HONEST: tuple[Step, ...] = (textbook, decayed_first, decayed_last)


def replay(
    step: Step,
    gradients: Sequence[Tensors],
    weights: Sequence[Tensors],
    work: Workload,
    skipped: Collection[int] = (),
) -> list[Tensors]:
    """The change of each step from the weights before it (``weights[t]``; there is one more than there are
    gradients). ``skipped``: the indices of steps that change nothing and do not count."""
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in weights[0].items()}
    changes: list[Tensors] = []
    t = 0
    for g, before in zip(gradients, weights, strict=False):
        if len(changes) in skipped:
            changes.append({name: torch.zeros_like(w) for name, w in before.items()})
            continue
        t += 1
        changes.append({name: step(w, g[name], moments[name], t, work) - w for name, w in before.items()})
    return changes


def clipped(gradients: Sequence[Tensors], work: Workload) -> list[Tensors]:
    """Each step's gradients scaled to a norm of at most ``max_grad_norm``, in their own precision."""
    if not work.max_grad_norm:
        return list(gradients)
    found: list[Tensors] = []
    for step in gradients:
        norm = sum(float(g.double().square().sum()) for g in step.values()) ** 0.5
        scale = min(1.0, work.max_grad_norm / (norm + 1e-6))
        found.append({name: g * scale for name, g in step.items()})
    return found


def judge(
    gradients: Sequence[Tensors], weights: Sequence[Tensors], work: Workload, skipped: Collection[int] = ()
) -> Measurement:
    """One measurement, for the step and tensor with the largest error. ``weights[0]`` holds the weights before the
    first step; ``skipped`` has the indices of steps that are to change nothing."""
    names = list(weights[0])
    if reason := _unlike(gradients, weights):
        return Measurement("parity", "replayed update", None, "× floor", "fail", reason)
    exact_weights = [_to(w, names, torch.float64) for w in weights]
    exact_gradients = clipped([_to(g, names, torch.float64) for g in gradients], work)
    exact = replay(textbook, exact_gradients, exact_weights, work, skipped)
    narrow = torch.float64 if work.dtype == "fp64" else torch.float32
    narrow_weights = [_to(w, names, narrow) for w in weights]
    # Engines scale gradients in the gradients' precision or in that of the weights.
    scaled = [clipped([_to(g, names, dtype) for g in gradients], work) for dtype in (None, narrow)]
    honest = [
        replay(step, [_to(g, names, narrow) for g in each], narrow_weights, work, skipped)
        for step in HONEST
        for each in scaled
    ]
    worst, where, size = 0.0, "", (0.0, 0.0)
    for t, true in enumerate(exact):
        found = errors({name: exact_weights[t + 1][name] - exact_weights[t][name] for name in names}, true)
        limit = _floor([errors(run[t], true) for run in honest], exact_weights[t], true, narrow)
        for name, error in found.tensors.items():
            ratio = error / max(limit.tensors[name], 1e-15) if error == error else float("inf")
            if ratio > worst:
                worst, where, size = ratio, f"step {t + 1}, {name}", (error, limit.tensors[name])
    good = worst <= MARGIN
    text = f"replayed update error {size[0]:.2g} = {worst:.2g} × floor {size[1]:.2g} (bound {MARGIN:g} ×)"
    text += f", worst in {where}"
    detail = {"error": size[0], "floor": size[1], "tensor": where}
    verdict = "pass" if good else "fail"
    return Measurement("parity", "replayed update", worst, "× floor", verdict, text, bound=MARGIN, detail=detail)


def _unlike(gradients: Sequence[Tensors], weights: Sequence[Tensors]) -> str:
    """Why these cannot be replayed, or an empty string: each step must have all tensors of the start, in its shapes."""
    for kind, steps in (("gradient", gradients), ("weight", weights[1:])):
        for step in steps:
            for name, start in weights[0].items():
                if name not in step:
                    return f"the {kind} of {name} is missing"
                if step[name].shape != start.shape:
                    return f"the {kind} of {name} has shape {tuple(step[name].shape)}, not {tuple(start.shape)}"
    return ""


def _to(tensors: Tensors, names: Sequence[str], dtype: torch.dtype | None) -> Tensors:
    """The named tensors, converted to ``dtype`` if it is given."""
    return {name: tensors[name].to(dtype or tensors[name].dtype) for name in names}


def _floor(runs: Sequence[Errors], weights: Tensors, changes: Tensors, dtype: torch.dtype) -> Errors:
    """A weight is exact only to half a unit in its last place, in any order of operations."""
    eps = torch.finfo(dtype).eps / 2
    unit = {n: eps * float(weights[n].norm()) / float(change.norm()) for n, change in changes.items() if change.any()}
    return at_least(floor(runs), unit)
