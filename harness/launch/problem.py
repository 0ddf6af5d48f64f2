"""A Function's work: the problem's inputs on this device, a call, and its results, leaf by leaf."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from harness.spec import TORCH_NAMES, Workload

TORCH_DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, full) for name, full in TORCH_NAMES.items()}


@dataclass(frozen=True)
class Drawn:
    """``inputs``, and a fixed random cotangent for each floating-point output tensor."""

    inputs: Mapping[str, Any]
    cotangents: Mapping[str, Tensor]

    @classmethod
    def of(cls, problem: str, workload: Workload, variant: Mapping[str, Any]) -> "Drawn":
        """The problem's inputs and cotangents, in the workload's dtype."""
        module, dtype = importlib.import_module(problem), TORCH_DTYPES[workload.dtype]
        inputs = placed(module.draw(workload, **variant), dtype)
        if not any(_differentiated(value) for value in inputs.values()):
            return cls(inputs, {})
        with torch.no_grad():  # only the shapes are used
            outputs = module.plain(placed(inputs, torch.float32), **variant)
        generator = torch.Generator().manual_seed(workload.seed)
        noise = {
            n: torch.randn(t.shape, generator=generator, dtype=torch.float64)
            for n, t in outputs.items()
            if isinstance(t, Tensor) and t.is_floating_point()
        }
        return cls(inputs, placed(noise, dtype))

    def to(self, dtype: torch.dtype) -> "Drawn":
        """The same numbers in another precision."""
        return Drawn(placed(self.inputs, dtype), placed(self.cotangents, dtype))


@dataclass(frozen=True)
class Leaves:
    """A Function's results by place (``answers.0``): some compared by the noise floor, some exactly."""

    tensors: Mapping[str, Tensor]
    exact: Mapping[str, Any]


def leaves(outputs: Mapping[str, Any], exact: Sequence[str]) -> Leaves:
    """Floating-point numbers, alone and in tensors, are compared by the floor, except outputs in ``exact``."""
    tensors: dict[str, Tensor] = {}
    equal: dict[str, Any] = {}
    for name, output in outputs.items():
        for place, leaf in _flat(name, output):
            floats = leaf.is_floating_point() if isinstance(leaf, Tensor) else isinstance(leaf, float)
            if floats and name not in exact:
                tensors[place] = leaf if isinstance(leaf, Tensor) else torch.tensor(leaf, dtype=torch.float64)
            else:
                equal[place] = leaf.tolist() if isinstance(leaf, Tensor) else leaf
    return Leaves(tensors, equal)


def _flat(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{place}.{name}", inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _flat(f"{place}.{index}", inner)
    else:
        yield place, value


def placed(values: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Copies the inputs with their tensors as leaves on this device; floating-point tensors are in ``dtype``."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def place(tensor: Tensor) -> Tensor:
        there = tensor.detach().to(device, dtype if tensor.is_floating_point() else None)
        return there.requires_grad_(tensor.requires_grad)

    found: dict[str, Any] = tree_map_only(Tensor, place, dict(values))
    return found


def part(function: Any, drawn: Drawn) -> Drawn:
    """This rank's part of the tensors, if the function is distributed over ranks."""
    if not hasattr(function, "split"):
        return drawn

    def split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parts = function.split({name: tensor.detach() for name, tensor in tensors.items()})
        return {name: mine.clone().requires_grad_(tensors[name].requires_grad) for name, mine in parts.items()}

    return Drawn(split(drawn.inputs), split(drawn.cotangents))


def forward_backward(function: Any, drawn: Drawn) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """The outputs, and the gradients of :func:`backward`."""
    outputs = function(drawn.inputs)
    if not isinstance(outputs, Mapping):
        raise TypeError(f"a Function returns a dict of outputs by name, not a {type(outputs).__name__}")
    return outputs, backward(outputs, drawn)


def backward(outputs: Mapping[str, Any], drawn: Drawn) -> dict[str, Tensor]:
    """The gradients of the differentiable inputs that the outputs depend on; empty if there are none."""
    names = [name for name, value in drawn.inputs.items() if _differentiated(value)]
    live = [name for name, out in outputs.items() if isinstance(out, Tensor) and out.requires_grad]
    if not names or not live:
        return {}
    gradients = torch.autograd.grad(
        [outputs[name] for name in live],
        [drawn.inputs[name] for name in names],
        [drawn.cotangents[name].to(outputs[name].dtype) for name in live],
        allow_unused=True,
    )
    return {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def shared(function: Any, drawn: Drawn, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients, with zeros for inputs that this rank of a distributed function does not use: all ranks gather the
    same names."""
    if not hasattr(function, "gather"):
        return gradients
    unused = {n: torch.zeros_like(x) for n, x in drawn.inputs.items() if x.requires_grad and n not in gradients}
    return gradients | unused


def _differentiated(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
