"""REINFORCE (Williams 1992, §4): θ += α (r − b) ∇ log π(a), with π = softmax(θ)."""

import time

import torch

from harness.spec import Curves, Topology, Workload
from tests.examples.bandit.arms import MEANS, pull

PULLS = 20  # samples per step


def run(workload: Workload, topology: Topology, seed: int, budget: int, baseline: bool) -> Curves:
    generator = torch.Generator().manual_seed(seed)
    theta = torch.zeros(len(MEANS))  # [arms]
    samples, scores, start = [], [], time.monotonic()
    for step in range(budget // PULLS):
        policy = theta.softmax(0)
        arms = torch.multinomial(policy, PULLS, replacement=True, generator=generator)  # [pulls]
        rewards = pull(arms, generator)
        advantages = rewards - rewards.mean() if baseline else rewards
        score_function = torch.eye(len(MEANS))[arms] - policy  # ∇ log π, [pulls, arms]
        theta = theta + 0.5 * (advantages[:, None] * score_function).mean(0)
        samples.append((step + 1) * PULLS)
        scores.append(float(rewards.mean()))
    return Curves(samples, scores, time.monotonic() - start)
