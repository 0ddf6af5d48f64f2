"""Functions compared with the float64 oracle, and sources with a planted fault, for the tests of topics."""

import importlib.util
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from harness.spec import Function, Workload

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}


def drawn(problem: Any, workload: Workload, **variant: Any) -> dict[str, Tensor]:
    """The problem's inputs in the workload's dtype."""
    return cast(problem.draw(workload, **variant), DTYPES[workload.dtype])


def cast(inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: x.detach().to(dtype).requires_grad_(x.requires_grad) if x.is_floating_point() else x
        for name, x in inputs.items()
    }


def computed(function: Function, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs, and the gradients of their sum weighted by fixed numbers that every dtype holds exactly."""
    outputs = function(inputs)
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(x.shape, generator=generator, dtype=torch.bfloat16) for name, x in outputs.items()}
    total = sum((x * weights[name].to(x.dtype)).sum() for name, x in outputs.items() if x.requires_grad)
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return {
        **{n: x.detach() for n, x in outputs.items()},
        **{f"d_{name}": x for name, x in zip(leaves, gradients, strict=True)},
    }


def distance(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """Relative L2 error of everything together: a gradient that is zero by nature is compared with the others' size."""
    assert found.keys() == exact.keys()
    wrong = sum(float((found[name].double() - x).square().sum()) for name, x in exact.items())
    return (wrong / sum(float(x.square().sum()) for x in exact.values())) ** 0.5


def error_over_plain(function: Function, problem: Any, workload: Workload, **variant: Any) -> float:
    """The function's distance to the oracle on the same inputs ÷ that of the plain formula in the same dtype."""
    inputs = drawn(problem, workload, **variant)
    exact = plainly(problem, cast(inputs, torch.float64), **variant)
    found = computed(function, inputs)
    return distance(found, exact) / distance(plainly(problem, inputs, **variant), exact)


def same_in_float64(function: Function, problem: Any, workload: Workload, **variant: Any) -> bool:
    """Whether the function in float64 is nearer to the oracle than the oracle on inputs rounded to float32."""
    inputs = drawn(problem, workload.with_(dtype="fp64"), **variant)
    exact = plainly(problem, inputs, **variant)
    rounded = plainly(problem, cast(cast(inputs, torch.float32), torch.float64), **variant)
    return distance(computed(function, inputs), exact) < distance(rounded, exact)


def plainly(problem: Any, inputs: Mapping[str, Tensor], **variant: Any) -> dict[str, Tensor]:
    return computed(lambda x: problem.plain(x, **variant), inputs)


def with_fault(module: ModuleType, right: str, wrong: str) -> ModuleType:
    """A copy of ``module`` whose source has ``wrong`` in place of ``right``, which must occur exactly once."""
    source = inspect.getsource(module)
    assert source.count(right) == 1, f"{right!r} occurs {source.count(right)} times in {module.__name__}"
    spec = importlib.util.spec_from_loader(f"{module.__name__}_with_fault", loader=None)
    assert spec is not None
    copy = importlib.util.module_from_spec(spec)
    exec(compile(source.replace(right, wrong), f"{module.__name__} with {wrong!r}", "exec"), copy.__dict__)
    return copy
