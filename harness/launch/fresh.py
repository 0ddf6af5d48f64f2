"""The results of a timed Function on inputs that no earlier call has seen: a time counts only if it still computes."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from harness.launch.problem import TORCH_DTYPES, Drawn, Leaves, backward, forward_backward, leaves, part, shared
from harness.spec import Workload

GRADIENT = "gradient of "
Results = tuple[Mapping[str, Any], dict[str, Tensor]]  # outputs, gradients of the inputs


@dataclass
class Fresh:
    """``oracle``: whether the work is small enough for the plain formula in float64."""

    function: Any
    problem: str
    workload: Workload
    variant: Mapping[str, Any]
    exact: tuple[str, ...]
    oracle: bool
    before: float = 0.0  # the error of a call before the timed ones

    def __post_init__(self) -> None:
        whole, mine = self.draw(self.workload.seed)
        self.last = self._found(mine, forward_backward(self.function, mine))
        if self.oracle:
            self.before = max(self._error(whole, self.last), torch.finfo(TORCH_DTYPES[self.workload.dtype]).eps)

    def draw(self, seed: int) -> tuple[Drawn, Drawn]:
        """Whole inputs of this seed, and this rank's part of them."""
        whole = Drawn.of(self.problem, self.workload.with_(seed=seed), self.variant)
        return whole, part(self.function, whole)

    def ratio(self, drawn: tuple[Drawn, Drawn], results: Results) -> float:
        """The error on these inputs, as a multiple of the one before; 1 if that was infinite, which parity reports.
        Without an oracle: infinite if the results are those of other inputs, bit by bit, else 1. All ranks call this
        together."""
        whole, mine = drawn
        last, self.last = self.last, self._found(mine, results)
        if not self.oracle:
            return inf if _same(self.last, last) else 1.0
        return 1.0 if self.before == inf else self._error(whole, self.last) / self.before

    def _found(self, mine: Drawn, results: Results) -> Leaves:
        """Whole outputs and gradients by their places."""
        whole, (outputs, gradients) = getattr(self.function, "gather", dict), results
        return _leaves(whole(outputs), whole(shared(self.function, mine, gradients)), self.exact)

    def _error(self, whole: Drawn, found: Leaves) -> float:
        """The largest relative error of a tensor; infinite if what must be equal is not."""
        wide = whole.to(torch.float64)
        outputs = importlib.import_module(self.problem).plain(wide.inputs, **self.variant)
        oracle = _leaves(outputs, backward(outputs, wide), self.exact)
        if found.exact != oracle.exact:
            return inf
        return max((_distance(found.tensors[name], truth) for name, truth in oracle.tensors.items()), default=0.0)


def _leaves(outputs: Mapping[str, Any], gradients: Mapping[str, Tensor], exact: tuple[str, ...]) -> Leaves:
    return leaves({**outputs, **{GRADIENT + name: gradient for name, gradient in gradients.items()}}, exact)


def _distance(found: Tensor, truth: Tensor) -> float:
    found, truth = found.detach().double(), truth.detach().to(found.device)
    return float((found - truth).norm() / truth.norm().clamp_min(1e-300))


def _same(found: Leaves, last: Leaves) -> bool:
    """Whether all outputs are; gradients also depend on the cotangents."""
    outputs = {name: tensor for name, tensor in found.tensors.items() if not name.startswith(GRADIENT)}
    return found.exact == last.exact and all(torch.equal(out, last.tensors[name]) for name, out in outputs.items())
