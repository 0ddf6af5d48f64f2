"""PyTorch's autocast around float32 weights, which are the masters."""

import time

import torch

from harness.spec import Curves, Topology, Workload
from impls.acceleration.mixed_precision_drift.work import Model, batches, curves, loss
from impls.common.mesh import device
from impls.common.optimizer import optimizer


def run(workload: Workload, topology: Topology, seed: int, budget: int, masters: bool) -> Curves:
    model = Model(workload, seed).to(device())
    steps = optimizer(model.parameters(), workload)
    losses, start = [], time.monotonic()
    for pairs, following in batches(workload, seed, budget):
        with torch.autocast(device().type, torch.bfloat16):
            found = loss(model, pairs.to(device()), following.to(device()))
        found.backward()
        steps.step()
        steps.zero_grad()
        losses.append(float(found.detach()))
    return curves(losses, workload, time.monotonic() - start)
