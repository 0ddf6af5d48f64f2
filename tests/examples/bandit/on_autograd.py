"""The same algorithm with PyTorch's autograd and optimizer."""

import time

import torch

from harness.spec import Curves, Topology, Workload
from tests.examples.bandit.arms import MEANS, pull
from tests.examples.bandit.reference import PULLS


def run(workload: Workload, topology: Topology, seed: int, budget: int, baseline: bool) -> Curves:
    generator = torch.Generator().manual_seed(seed)
    theta = torch.zeros(len(MEANS), requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=0.5, maximize=True)
    samples, scores, start = [], [], time.monotonic()
    for step in range(budget // PULLS):
        log_policy = theta.log_softmax(0)
        arms = torch.multinomial(log_policy.detach().exp(), PULLS, replacement=True, generator=generator)
        rewards = pull(arms, generator)
        advantages = rewards - rewards.mean() if baseline else rewards
        optimizer.zero_grad()
        (advantages * log_policy[arms]).mean().backward()
        optimizer.step()
        samples.append((step + 1) * PULLS)
        scores.append(float(rewards.mean()))
    return Curves(samples, scores, time.monotonic() - start)


def idle(workload: Workload, topology: Topology, seed: int, budget: int, baseline: bool) -> Curves:
    """A planted fault: it pulls arms but learns nothing."""
    generator = torch.Generator().manual_seed(seed)
    rewards = pull(torch.randint(len(MEANS), (budget,), generator=generator), generator).view(-1, PULLS).mean(1)
    return Curves(list(range(PULLS, budget + 1, PULLS)), rewards.tolist(), 1.0)
