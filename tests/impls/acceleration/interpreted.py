"""Triton's kernels of FlashAttention under Triton's interpreter, judged by parity: one JSON line for each case.

Run as ``python -m tests.impls.acceleration.interpreted``: the interpreter must be chosen before triton is imported.
"""

import json
import os
import sys
from functools import partial

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from harness.judge import parity
from harness.launch.problem import Drawn, backward
from harness.launch.reordered import Reordered
from harness.spec import Function, ModelConfig, Topology, Workload
from impls.acceleration.flash_attention import CARD, on_triton, problem

PROBLEM = "impls.acceleration.flash_attention.problem"
dot, convert = interpreter.InterpreterBuilder.create_dot, interpreter._convert_float


def right_dot(builder, a, b, d, *options):  # type: ignore[no-untyped-def]
    """The interpreter (3.7.1) keeps bfloat16 as 16-bit integers, and multiplies these: convert them before."""
    return dot(builder, *(_float32(x) for x in (a, b)), d, *options)


def _float32(x):  # type: ignore[no-untyped-def]
    if x.dtype.scalar != tl.bfloat16:
        return x
    return interpreter.TensorHandle(convert(x.data, tl.bfloat16, tl.float32, None).view(np.float32), tl.float32)


def right_convert(data, source, target, mode):  # type: ignore[no-untyped-def]
    """And it cuts float32 off to bfloat16, where a GPU rounds to the nearest: 0.1 % less on average."""
    if (source, target) != (tl.float32, tl.bfloat16):
        return convert(data, source, target, mode)
    return torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.int16).numpy().view(np.uint16)


def results(function: Function, drawn: Drawn) -> dict[str, dict[str, torch.Tensor]]:
    outputs = function(drawn.inputs)
    return {"output": {"output": outputs["output"].detach()}, "gradient": backward(outputs, drawn)}


def judged(variant: str, work: Workload) -> dict[str, float]:
    """Each figure of parity ÷ its bound, with a floor as the suites have it (harness/run/oracle.py)."""
    options = CARD.variants[variant]
    plain = partial(problem.plain, **options)
    drawn = Drawn.of(PROBLEM, work, options)
    exact, honest = results(plain, drawn.to(torch.float64)), [results(plain, drawn)]
    for seed in range(1, 9):
        with Reordered(seed, fused=seed % 2 == 0):
            honest.append(results(plain, drawn))
    floors = parity.floors([(run, exact) for run in honest])
    for seed in range(1, 6):
        other = Drawn.of(PROBLEM, work.with_(seed=seed), options)
        floors = parity.raised(floors, results(plain, other), results(plain, other.to(torch.float64)))
    found = results(on_triton.build(work, Topology(), **options), drawn)
    judgement = parity.judge(found, (), parity.Reference(parity.Oracle(exact), floors), 1, ())
    return {m.quantity: float("inf") if m.value is None else m.value / parity.MARGIN for m in judgement}


def main() -> None:
    interpreter.InterpreterBuilder.create_dot, interpreter._convert_float = right_dot, right_convert
    on_triton.forward_blocks = lambda width, size: on_triton.Blocks(32, 16, 4, 1)
    on_triton.backward_blocks = lambda width, size: on_triton.Blocks(16, 32, 4, 1)
    model = ModelConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    for variant in sys.argv[1].split(","):
        for dtype in sys.argv[2].split(","):
            work = Workload(model=model, batch_size=1, sequence_length=70, dtype=dtype)
            print(json.dumps({"variant": variant, "dtype": dtype, "ratios": judged(variant, work)}), flush=True)


if __name__ == "__main__":
    main()
