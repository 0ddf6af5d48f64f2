"""Jobs that take a reference's step and report the lines in which the host waits for the device."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from harness.catalog import load
from harness.launch import timed
from harness.launch.problem import Drawn, forward_backward, part
from harness.launch.rank import Context
from harness.spec import Topology, Unsupported, Workload
from impls.engines import cuda_on_cpu
from impls.parallelism.hybrid_3d.resharding import AFTER
from tests.impls.accelerator import Accelerator

Variants = Mapping[str, tuple[Workload, Topology, Mapping[str, Any]]]


def waits(context: Context, build: str, problem: str, data: str, variants: Variants) -> dict[str, list[str] | str]:
    """For a step of each variant: the lines in which the host waits for a simulated device, or the reason why there is
    no step."""
    make = load(build)  # before CUDA's streams are redirected, since annotations name them
    cuda_on_cpu.redirect()
    found: dict[str, list[str] | str] = {}
    for name, (workload, topology, options) in variants.items():
        with Accelerator() as device:
            try:
                built = make(workload, topology, **options)
            except Unsupported as reason:
                found[name] = str(reason)
                continue
            step = (
                _function(built, device, problem, workload, options)
                if problem
                else _trainer(built, workload, data, options)
            )
            for _ in range(AFTER):  # by then the optimizer has its states, and a run that is resharded has been
                step()
            device.waits.clear()
            step()
            found[name] = device.waits
    return found


def _trainer(trainer: Any, workload: Workload, data: str, options: Mapping[str, Any]) -> Callable[[], None]:
    batch = load(f"{data}:batch")(workload, 0, **options)

    def step() -> None:
        trainer.backward(batch)
        trainer.update()

    return step


def _function(
    function: Any, device: Accelerator, problem: str, workload: Workload, options: Mapping[str, Any]
) -> Callable[[], None]:
    drawn = Drawn.of(problem, workload, options)
    inputs, cotangents = (
        {name: device.put(x.detach().clone()).requires_grad_(x.requires_grad) for name, x in tensors.items()}
        for tensors in (drawn.inputs, drawn.cotangents)
    )
    mine = part(function, Drawn(inputs, cotangents))
    return lambda: forward_backward(function, mine)


def step_without_waiting(context: Context, kind: str, **work: Any) -> None:
    """On CUDA: some steps as they are timed, then one in which each wait of the host raises RuntimeError."""
    getattr(timed, kind)(context, **work)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        context.state["step"](0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
