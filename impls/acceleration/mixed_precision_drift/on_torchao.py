"""torchao's ``_AdamW`` with ``bf16_stochastic_round`` on a bfloat16 model."""

import time

import torch
from torchao.optim import _AdamW

from harness.spec import Curves, Topology, Workload
from impls.acceleration.mixed_precision_drift.work import Model, batches, curves, loss
from impls.common.mesh import device


def run(workload: Workload, topology: Topology, seed: int, budget: int, masters: bool, stochastic: bool) -> Curves:
    if device().type == "cpu":
        torch.compiler.set_stance("force_eager")  # it would spend half a minute compiling what runs for microseconds
    torch.manual_seed(seed)  # its rounding draws from the default generator
    model = Model(workload, seed).to(device(), torch.bfloat16)
    steps = _AdamW(
        model.parameters(),
        lr=workload.lr,
        betas=workload.betas,
        eps=workload.eps,
        weight_decay=workload.weight_decay,
        bf16_stochastic_round=stochastic,
    )
    losses, start = [], time.monotonic()
    for pairs, following in batches(workload, seed, budget):
        found = loss(model, pairs.to(device()), following.to(device()))
        found.backward()
        steps.step()
        steps.zero_grad()
        losses.append(float(found.detach()))
    return curves(losses, workload, time.monotonic() - start)
