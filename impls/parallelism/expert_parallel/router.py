"""Routers: which experts a token goes to, by how much each counts, and the losses that keep the experts alike.

t tokens of this rank   E experts   k choices   g groups of this rank, each S = t/g tokens with its own capacity C
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from impls.parallelism.expert_parallel.rule import Rule


def choose(logits: Tensor, bias: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [t, E] → scores [t, E], experts [t, k], best first, and gates [t, k].

        softmax   p = softmax(logits); the k largest p                     (Switch, equation 2)
        sigmoid   s = σ(logits); the k largest s + b, the bias has no say  (DeepSeek-V3, equations 13–16)
                  in what the gates are

    Of several, gates are divided by their sum (GShard, algorithm 1, line 9; Mixtral's softmax over the k logits).
    """
    scores = logits.sigmoid() if rule.bias else logits.softmax(-1)
    by = scores.detach() if bias is None else scores.detach() + bias
    experts = by.topk(rule.k).indices
    gates = scores.gather(1, experts)
    return scores, experts, gates / gates.sum(-1, keepdim=True) if rule.k > 1 else gates


def keep(experts: Tensor, gates: Tensor, rule: Rule, groups: int) -> Tensor:
    """[t, k], false for what an expert has no room for. Turns in a group: first choices of all its tokens, then second
    ones (GShard, algorithm 1); or by falling gate (V-MoE, section 4.1)."""
    size = len(experts) // groups
    turns, weights = (x.view(groups, size, rule.k).mT.reshape(groups, -1) for x in (experts, gates))  # [g, k S]
    if rule.drop == "priority":
        order = weights.argsort(descending=True)
        turns = turns.gather(1, order)
    ahead = F.one_hot(turns, rule.experts).cumsum(1).gather(2, turns[..., None]).squeeze(2)  # its number in the queue
    kept = ahead <= rule.slots(size)
    if rule.drop == "priority":
        kept = torch.empty_like(kept).scatter_(1, order, kept)
    return kept.view(groups, rule.k, size).mT.reshape(-1, rule.k)


def balance(shares: Tensor, scores: Tensor, experts: int, groups: int, total: int) -> Tensor:
    """This rank's part of L_aux = E Σ f_i P_i (Switch, equations 4–6), the mean over all ``total`` groups.

    shares: f [g, E], or [1, E] of the whole batch; scores [t, E], of whose mean P only f's factor is differentiated.
    """
    means = scores.view(groups, -1, experts).mean(1)
    return experts * (shares * means).sum() / total


def z_loss(logits: Tensor, tokens: int) -> Tensor:
    """This rank's part of L_z = 1/T Σ (log Σ exp logits)² (ST-MoE, equation 5), over ``tokens`` = T of all ranks."""
    return logits.logsumexp(-1).square().sum() / tokens
