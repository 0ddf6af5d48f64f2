"""Accelerate with `mixed_precision="fp16"` on a CPU trains in float32, and says nothing of it.

A user tries a run in fp16 on a CPU, where PyTorch's autocast knows float16: there is neither autocast nor a loss scale,
so nothing overflows and no step is skipped. `accelerator.mixed_precision` is "fp16" all the same.
"""

import sys

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

INPUT = torch.full((1, 1), 300.0)  # times a weight of 300 it exceeds float16's largest number, 65504


def layer() -> torch.nn.Linear:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 300.0)
    return model


def by_accelerate(precision: str) -> tuple[float, object]:
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
    accelerator = Accelerator(mixed_precision=precision, cpu=True)
    return accelerator.prepare(layer())(INPUT).item(), accelerator.scaler


def by_autocast(dtype: torch.dtype) -> float:
    with torch.autocast("cpu", dtype):
        return layer()(INPUT).item()


control, (found, scaler) = by_accelerate("bf16")[0], by_accelerate("fp16")
assert control == by_autocast(torch.bfloat16) != 90000.0, "bf16 is not PyTorch's autocast either"
expected = by_autocast(torch.float16)
print(f"expected {expected} with a loss scale, as float16 has it (PyTorch's autocast; {control} in bf16 on both sides)")
print(f"found    {found} with the loss scale {scaler} (mixed_precision='fp16')")
wrong = found != expected
print("still there" if wrong else "gone")
sys.exit(wrong)
