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

    def __post_init__(self) -> None:
        whole, mine = self.draw(self.workload.seed)
        self.last = self._found(mine, forward_backward(self.function, mine))
        if self.oracle:
            self.truth = self._plain(whole)
            self.wrong = self.last.exact != self.truth.exact or self.truth.tensors.keys() - self.last.tensors.keys()
            least = torch.finfo(TORCH_DTYPES[self.workload.dtype]).eps
            self.before = {
                n: max(_distance(self.last.tensors.get(n, t), t), least) for n, t in self.truth.tensors.items()
            }

    def draw(self, seed: int) -> tuple[Drawn, Drawn]:
        """Whole inputs of this seed, and this rank's part of them."""
        whole = Drawn.of(self.problem, self.workload.with_(seed=seed), self.variant)
        return whole, part(self.function, whole)

    def ratio(self, drawn: tuple[Drawn, Drawn], results: Results) -> float:
        """The largest error of a tensor on these inputs, over the one that lies, in orders of magnitude, halfway from
        its error before the timed calls to the error of the right result for other inputs. What was wrong before is
        left to parity.

        Without an oracle: infinite if the results are those of other inputs, bit by bit, else 0. All ranks call this
        together."""
        whole, mine = drawn
        last, self.last = self.last, self._found(mine, results)
        if not self.oracle:
            return inf if _same(self.last, last) else 0.0
        old, self.truth = self.truth, self._plain(whole)
        if self.wrong:
            return 0.0
        if self.last.exact != self.truth.exact:
            return inf
        found = [0.0]
        for name, truth in self.truth.tensors.items():
            before, other = self.before[name], old.tensors[name]
            stale = _distance(other, truth) if other.shape == truth.shape else 1.0
            if stale > before:
                found.append(_distance(self.last.tensors[name], truth) / (before * stale) ** 0.5)
        return max(found)

    def _found(self, mine: Drawn, results: Results) -> Leaves:
        """Whole outputs and gradients by their places."""
        whole, (outputs, gradients) = getattr(self.function, "gather", dict), results
        return _leaves(whole(outputs), whole(shared(self.function, mine, gradients)), self.exact)

    def _plain(self, whole: Drawn) -> Leaves:
        """The right results, by the plain formula in float64."""
        wide = whole.to(torch.float64)
        outputs = importlib.import_module(self.problem).plain(wide.inputs, **self.variant)
        return _leaves(outputs, backward(outputs, wide), self.exact)


def _leaves(outputs: Mapping[str, Any], gradients: Mapping[str, Tensor], exact: tuple[str, ...]) -> Leaves:
    return leaves({**outputs, **{GRADIENT + name: gradient for name, gradient in gradients.items()}}, exact)


def _distance(found: Tensor, truth: Tensor) -> float:
    found, truth = found.detach().double(), truth.detach().to(found.device)
    return float((found - truth).norm() / truth.norm().clamp_min(1e-300))


def _same(found: Leaves, last: Leaves) -> bool:
    """Whether all outputs are; gradients also depend on the cotangents."""
    outputs = {name: tensor for name, tensor in found.tensors.items() if not name.startswith(GRADIENT)}
    return found.exact == last.exact and all(torch.equal(out, last.tensors[name]) for name, out in outputs.items())
