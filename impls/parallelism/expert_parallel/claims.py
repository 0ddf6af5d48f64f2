"""Published figures of expert parallelism compared with arithmetic and with this topic's routers."""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor

from harness.spec import Measurement, Workload, assessed
from impls.parallelism.expert_parallel.problem import draw
from impls.parallelism.expert_parallel.router import SPEED, Rule, balance, choose

Records = Sequence[Mapping[str, Any]]
RATE, STEPS = 3.0, 100  # steps of gradient descent on the router alone, under the auxiliary loss alone


def practice_parameters(records: Records) -> Measurement:
    """6,973 parameters: 10 inputs, 5 outputs, 4 experts of one hidden layer of 64, and a gate."""
    expert, row = (10 * 64 + 64) + (64 * 5 + 5), 10 + 1
    total = 4 * (expert + row)
    return assessed(
        "practice_parameters",
        "contradicted",
        f"an expert has {expert:,} parameters and its row of the gate {row}: four of them {total:,}",
        f"6,973 = {6973 // (expert + row)} × {expert + row:,} + {6973 % (expert + row)}: no number of experts fits",
        value=float(total),
        law=6973.0,
        unit="parameters",
    )


def practice_entropy(records: Records) -> Measurement:
    """Entropy of the experts' loads, 2.0672 of at most 2.0794, compared with two balanced routers."""
    most, published = log(8), 2.0672
    before, by_loss = _under_auxiliary_loss()
    raw, by_bias = _under_bias()
    best = max(by_loss, by_bias)
    return assessed(
        "practice_entropy",
        "reproduced" if best >= published else "contradicted",
        f"on {Workload().tokens} tokens, 2 of 8 experts each: {before:.4f} → {by_loss:.4f} in {STEPS} steps of the "
        f"auxiliary loss, {raw:.4f} → {by_bias:.4f} in {STEPS} updates of the bias",
        f"ln 8 = {most:.4f} is the entropy of eight equal loads, but the same practice counts the parameters of four "
        f"experts (ln 4 = {log(4):.4f}); 2.0672 is {published / most:.1%} of it",
        value=best,
        law=published,
        unit="nat",
        direction="higher",
        detail={"auxiliary_loss": [before, by_loss], "bias": [raw, by_bias], "most": most},
    )


def entropy(load: Tensor) -> float:
    """−Σ q ln q of the shares q of these counts; an expert without tokens adds nothing."""
    share = load[load > 0].double() / load.sum()
    return float(-(share * share.log()).sum())


def _load(experts: Tensor) -> Tensor:
    return experts.flatten().bincount(minlength=8)


def _under_auxiliary_loss() -> tuple[float, float]:
    rule = Rule(experts=8, k=2, auxiliary=1.0)
    inputs = draw(Workload(), experts=8, k=2)
    x, router = inputs["x"].detach().flatten(0, 1), inputs["router"].detach().requires_grad_()
    seen = []
    for _ in range(STEPS + 1):
        scores, experts, _ = choose(x @ router.mT, None, rule)
        load = _load(experts)
        seen.append(entropy(load))
        (slope,) = torch.autograd.grad(balance((load / load.sum())[None], scores, 1), router)
        router = (router - RATE * slope).detach().requires_grad_()
    return seen[0], seen[-1]


def _under_bias() -> tuple[float, float]:
    rule = Rule(experts=8, k=2, bias=True)
    inputs = draw(Workload(), experts=8, k=2, bias=True)
    logits, bias = (inputs["x"].flatten(0, 1) @ inputs["router"].mT).detach(), inputs["bias"].clone()
    seen = []
    for _ in range(STEPS + 1):
        load = _load(choose(logits, bias, rule)[1])
        seen.append(entropy(load))
        bias += SPEED * (load.double().mean() - load).sign()
    return seen[0], seen[-1]
