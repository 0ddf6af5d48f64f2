"""A whole fine-tuning, by the references of this chapter: the loop around their steps, and the learning curve.

    for each step t:
        η_t ← η · min(1, t / warm-up)       the learning rate rises from 0, and stays
        loss, gradients ← backward(batch_t)
        weights ← update(η_t)
        every few steps: the share of held-out questions with an exactly right answer

    method   what learns                                            whose code
    full     every weight                                           impls/finetuning/sft
    lora     A and B beside each matrix                             impls/finetuning/lora
    qlora    the same beside matrices that are stored in 4 bits     impls/finetuning/qlora
    ia3      three vectors a layer                                  impls/finetuning/prompt_methods

All start as in their papers: B is zero (Hu et al. 2021, §4.1) and vectors are one (Liu et al. 2022, §3.3), so that the
first loss is the base model's.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.spec import Curves, Topology, Workload
from impls.common.mesh import placed
from impls.finetuning.finetuning_curves import task
from impls.finetuning.lora import reference as lora
from impls.finetuning.prompt_methods import reference as prompts
from impls.finetuning.qlora import reference as qlora
from impls.finetuning.sft import reference as sft
from impls.finetuning.sft.data import Example


def share(step: int) -> float:
    """The part of η in this step, counted from 0."""
    return min(1.0, step / task.WARM_UP)


class Full:
    """Every weight, in padded rows."""

    def __init__(self, workload: Workload, topology: Topology) -> None:
        self.trainer: Any = sft.build(workload, topology)
        self.optimizer: torch.optim.Optimizer = self.trainer.optimizer.optimizer

    def backward(self, conversations: Sequence[Example]) -> Tensor:
        loss: Tensor = self.trainer.backward(conversations)
        return loss

    def logits(self, conversations: Sequence[Example]) -> Tensor:
        logits: Tensor = self.trainer.logits(placed(self.trainer.rows(conversations)), None)  # [b, s + 1, V]
        return logits[:, :-1]


class Adapted:
    """New parameters of a frozen model, at the start of their paper."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.optimizer = trainer, trainer.optimizer
        with torch.no_grad():
            for name, weight in trainer.weights.items():
                if name.endswith("lora_B.weight"):
                    weight.zero_()
                elif name.endswith("ia3_l"):
                    weight.fill_(1.0)

    def backward(self, conversations: Sequence[Example]) -> Tensor:
        loss: Tensor = self.trainer.backward(task.batch(conversations))
        return loss

    def logits(self, conversations: Sequence[Example]) -> Tensor:
        logits: Tensor = self.trainer.model(placed(task.batch(conversations)).inputs)  # [b, s, V]
        return logits


def prepared(workload: Workload, topology: Topology, method: str, **sizes: Any) -> Full | Adapted:
    if method == "full":
        return Full(workload, topology)
    build = {"lora": lora.build, "qlora": qlora.build, "ia3": prompts.build}[method]
    more = {"method": "ia3"} if method == "ia3" else sizes
    return Adapted(build(workload, topology, **more))


def run(workload: Workload, topology: Topology, seed: int, budget: int, lr: float, rule: str, **variant: Any) -> Curves:
    with task.pretrained(workload, seed, lr) as work:
        model = prepared(work, topology, **variant)
    held_out = task.held_out(rule)
    labels = task.batch(held_out).labels
    samples, scores, losses, start = [], [], [], time.monotonic()
    for step, conversations in enumerate(task.batches(work, budget, rule)):
        for group in model.optimizer.param_groups:
            group["lr"] = lr * share(step)
        losses.append(float(model.backward(conversations)))
        model.trainer.update()
        if (step + 1) % task.EVERY == 0:
            with torch.no_grad():
                scores.append(task.exact_matches(model.logits(held_out), labels))
            samples.append((step + 1) * workload.batch_size)
    return Curves(samples, scores, time.monotonic() - start, losses)
