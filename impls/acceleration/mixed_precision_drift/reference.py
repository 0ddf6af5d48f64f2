"""Training in bfloat16 with float32 masters or without (Micikevicius et al. 2018, §3.1), over some hundred steps.

    w   weights of the passes, 2 bytes        M   float32: the masters, or w widened for this step alone

    with masters      M ← AdamW(M, g)            w ← round(M)
    without           M ← AdamW(float(w), g)     w ← round(M)

A bfloat16 number has 8 significant bits. An update smaller than 2⁻⁹ of its weight is lost in round(M), in each step
again; a master keeps it until its sum with others is large enough. Stochastic rounding (Gupta et al. 2015, §2.1) needs
no masters: it rounds up with the probability of the part that it cuts off, so that what is lost is zero on average.
"""

import time

import torch
from torch import Tensor

from harness.spec import Curves, Topology, Workload
from impls.acceleration.mixed_precision_drift.work import Model, batches, curves, loss
from impls.common.mesh import device
from impls.common.optimizer import optimizer
from impls.common.weights import TORCH_DTYPES

CUT = 16  # bits of float32 that bfloat16 does not have


def rounded(x: Tensor, generator: torch.Generator) -> Tensor:
    """x, float32, rounded to one of its two neighbours in bfloat16, E[round(x)] = x."""
    noise = torch.randint(1 << CUT, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    bits = (x.view(torch.int32) + noise) & -(1 << CUT)  # a carry goes into the last bit that is kept
    return bits.view(torch.float32).bfloat16()


def run(
    workload: Workload, topology: Topology, seed: int, budget: int, masters: bool, stochastic: bool = False
) -> Curves:
    model = Model(workload, seed).to(device(), TORCH_DTYPES[workload.dtype])
    generator = torch.Generator(device()).manual_seed(seed)
    weights = list(model.parameters())  # w
    wide = [w.detach().float() for w in weights]  # M
    steps = optimizer(wide, workload)
    losses, start = [], time.monotonic()
    for pairs, following in batches(workload, seed, budget):
        found = loss(model, pairs.to(device()), following.to(device()))
        found.backward()
        for w, m in zip(weights, wide, strict=True):
            if not masters:
                m.copy_(w.detach())  # forgets what rounding cut off
            m.grad, w.grad = w.grad.float(), None
        steps.step()
        with torch.no_grad():
            for w, m in zip(weights, wide, strict=True):
                w.copy_(rounded(m, generator) if stochastic else m)
        losses.append(float(found.detach()))
    return curves(losses, workload, time.monotonic() - start)
