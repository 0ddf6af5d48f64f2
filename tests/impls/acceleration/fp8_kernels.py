"""Run by test_fp8_triton.py in a process of its own, since TRITON_INTERPRET must be set before triton is imported."""

import numpy as np
import torch

from harness.spec import ModelConfig, Topology, Workload
from impls.acceleration.fp8 import CARD, on_triton
from impls.acceleration.fp8.formats import E4M3, E5M2, cast
from impls.acceleration.fp8.problem import draw
from impls.acceleration.fp8.recipes import Rule
from impls.acceleration.fp8.reference import build

RAGGED = Workload("ragged", ModelConfig(hidden_size=45, intermediate_size=133), batch_size=1, sequence_length=33)


def casts() -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    for f in (E4M3, E5M2):
        codes, _ = on_triton.quantise(every.view(256, 256), f.dtype, (0, 0), Rule.EXACT, torch.tensor(f.max))
        assert torch.equal(codes.view(torch.uint8).flatten(), cast(every, f).to(f.dtype).view(torch.uint8))


def layers() -> None:
    for variant in ("fp8_delayed", "fp8_rows", "fp8_blocks", "mxfp8"):
        arguments = dict(CARD.variants[variant])
        inputs = {n: x.detach().float().requires_grad_(x.requires_grad) for n, x in draw(RAGGED, **arguments).items()}
        names = [name for name, x in inputs.items() if x.requires_grad]
        ours, theirs = (each(RAGGED, Topology(), **arguments)(inputs) for each in (on_triton.build, build))
        dy = torch.randn(ours["output"].shape, generator=torch.Generator().manual_seed(0))
        results = []
        for outputs in (ours, theirs):
            gradients = torch.autograd.grad(outputs["output"], [inputs[name] for name in names], dy)
            results.append({**outputs, **{f"d{n}": g for n, g in zip(names, gradients, strict=True)}})
        assert results[0].keys() == results[1].keys()
        for name, theirs_too in results[1].items():
            found, expected = results[0][name].detach(), theirs_too.detach()
            if found.is_floating_point() and not name.endswith(("scales", "history")):
                off = float((found - expected).norm() / expected.norm())
                assert off < 64 * torch.finfo(torch.float32).eps, (variant, name, off)
            else:
                assert torch.equal(found, expected), (variant, name)


if __name__ == "__main__":
    with np.errstate(invalid="ignore"):  # NaN is among the numbers that are cast
        casts()
    layers()
    print("equal")
