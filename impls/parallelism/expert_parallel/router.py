"""The router: a token's experts and their gates, and the losses that balance the experts' loads.

t tokens of this rank   T of all ranks   E experts   k choices   g groups of this rank, each of S = t/g tokens
C the capacity of an expert, for each group
"""

from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from impls.parallelism.expert_parallel.dispatch import Group, add_up

SPEED = 2.0**-10  # γ, the size of a step of the bias; DeepSeek-V3 has 0.001 (section 4.2)


@dataclass(frozen=True)
class Rule:
    """The routing of a layer: the arguments of a variant.

    ``capacity``: the factor of each expert's capacity; 0 drops no token. ``groups``: runs of whole sequences of the
    batch. Each has its own capacity and auxiliary loss, so that neither depends on the number of ranks. ``drop``: the
    order when an expert is full, by ``position`` (first choices of all tokens, then second ones) or by ``priority``
    (the largest gates). ``auxiliary``, ``z``: the weights α and β of the two losses. ``bias``: sigmoid scores, and a
    bias that affects only the choice.
    """

    experts: int
    k: int
    capacity: float = 0.0
    groups: int = 1
    drop: str = "position"
    auxiliary: float = 0.0
    z: float = 0.0
    bias: bool = False

    def slots(self, tokens: int) -> int:
        """C = ⌈k S / E · factor⌉: the number of tokens of a group that an expert accepts."""
        return ceil(self.k * tokens / self.experts * self.capacity)


def choose(logits: Tensor, bias: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [t, E] → scores [t, E], experts [t, k], best first, and gates [t, k].

        softmax   p = softmax(logits); the k largest p           (Switch, equation 2)
        sigmoid   s = σ(logits); the k largest s + b;            (DeepSeek-V3, equations 13–16)
                  gates are of s alone

    If k > 1, gates are divided by their sum (GShard, algorithm 1, line 9; Mixtral's softmax over the k logits).
    """
    scores = logits.sigmoid() if rule.bias else logits.softmax(-1)  # [t, E]
    ranking = scores.detach() if bias is None else scores.detach() + bias  # [t, E]
    experts = ranking.topk(rule.k).indices  # [t, k]
    gates = scores.gather(1, experts)  # [t, k]
    return scores, experts, gates / gates.sum(-1, keepdim=True) if rule.k > 1 else gates


def keep(experts: Tensor, gates: Tensor, rule: Rule, groups: int) -> Tensor:
    """[t, k], false where the expert has no room left. The queue in a group: first choices of all its tokens, then
    second ones (GShard, algorithm 1); or by falling gate (V-MoE, section 4.1)."""
    size = len(experts) // groups
    # 1. Order the queue: choice by choice, and token by token within each choice: [t, k] = [g S, k] → [g, k S].
    queue, weights = (x.view(groups, size, rule.k).mT.reshape(groups, -1) for x in (experts, gates))
    if rule.drop == "priority":
        order = weights.argsort(descending=True)  # [g, k S]
        queue = queue.gather(1, order)
    # 2. Count each expert's requests along the queue; a request's own count is its place, and the first C have room.
    counts = F.one_hot(queue, rule.experts).cumsum(1)  # [g, k S, E]
    place = counts.gather(2, queue.unsqueeze(2)).squeeze(2)  # [g, k S], from 1
    kept = place <= rule.slots(size)  # [g, k S]
    # 3. Back to tokens and choices: [g, k S] → [t, k].
    if rule.drop == "priority":
        kept = torch.empty_like(kept).scatter_(1, order, kept)
    return kept.view(groups, rule.k, size).mT.reshape(-1, rule.k)  # [t, k]


def losses(
    logits: Tensor, scores: Tensor, experts: Tensor, load: Tensor, rule: Rule, dp: Group
) -> tuple[dict[str, Tensor], Tensor]:
    """This rank's parts of the losses, by name, and of T (α L_aux + β L_z). ``load`` [E]: this rank's rows for each
    expert. With a capacity f is the share of first choices in a group (Switch; GShard); without, of all choices in the
    global batch (Qiu et al. 2025, arXiv:2501.11873)."""
    tokens = len(logits) * dp.size()  # T
    parts, loss = {}, logits.new_zeros(())
    if rule.auxiliary:
        if rule.capacity:
            groups = rule.groups // dp.size()
            f = F.one_hot(experts[:, 0].view(groups, -1), rule.experts).to(scores.dtype).mean(1)  # [g, E]
        else:
            groups = 1
            f = add_up(load.clone(), dp).to(scores.dtype)[None] / (rule.k * tokens)  # [1, E]
        parts["auxiliary_loss"] = balance(f, scores, groups * dp.size())
        loss = loss + rule.auxiliary * parts["auxiliary_loss"]
    if rule.z:
        parts["z_loss"] = z_loss(logits, tokens)
        loss = loss + rule.z * parts["z_loss"]
    return parts, tokens * loss


def balance(f: Tensor, scores: Tensor, groups: int) -> Tensor:
    """This rank's part of L_aux = E Σ f_i P_i (Switch, equations 4–6), the mean over all ``groups`` of all ranks.
    f [g, E]: shares of the tokens, which have no gradient; scores [t, E], whose mean in a group is P."""
    number, mine = scores.shape[1], len(f)
    p = scores.view(mine, -1, number).mean(1)  # [g, E]
    return number * (f * p).sum() / groups


def z_loss(logits: Tensor, tokens: int) -> Tensor:
    """This rank's part of L_z = 1/T Σ (log Σ exp logits)² (ST-MoE, equation 5); ``tokens`` is T."""
    return logits.logsumexp(-1).square().sum() / tokens


def moved(bias: Tensor, load: Tensor, dp: Group) -> Tensor:
    """b_i + γ sign(mean load − load_i), with the load [E] of all ranks (Wang et al. 2024, algorithm 1)."""
    loads = add_up(load.float(), dp)  # [E]
    return bias.float() + SPEED * (loads.mean() - loads).sign()
