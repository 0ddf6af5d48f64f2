"""A mixture-of-experts layer on tokens whose routing is unambiguous.

Top-k turns a rounding error into another expert, so the drawn values keep a distance: a token's k + 1 best experts are
MARGIN apart, and if gates decide which tokens are dropped, so are the gates on either side of an expert's capacity.
Tokens, router and bias are representable in bfloat16, so every precision gets the same values.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.spec import Workload
from impls.common.routers import slope
from impls.parallelism.expert_parallel.reference import naive
from impls.parallelism.expert_parallel.router import SPEED, Rule
from impls.parallelism.expert_parallel.spread import reported

MARGIN = 0.03  # of logits, or of sigmoid scores with their bias: logits up to 4 have an error of 0.008 in bfloat16
GATE_MARGIN = 1e-4  # of gates, which every engine computes in float32


def draw(workload: Workload, **variant: object) -> dict[str, Tensor]:
    """x [b, s, h], router [E, h], gate_up [E, 2f, h] (the gate's rows first), down [E, h, f], all differentiated, and
    bias [E] where the variant has one; float64.

    gate and up are one matrix, as every engine keeps them. Rows of the router are of unequal length, so some experts
    are chosen more often than others.
    """
    rule, model = Rule(**variant), workload.model  # type: ignore[arg-type]
    if workload.batch_size % rule.groups:
        raise ValueError(f"batch_size {workload.batch_size} is not a multiple of the variant's {rule.groups} groups")
    generator = torch.Generator().manual_seed(workload.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).bfloat16().double()

    h, f, experts = model.hidden_size, model.intermediate_size, rule.experts
    inputs = {
        "router": (normal(experts, h) * torch.linspace(0.5, 1.5, experts)[:, None] / h**0.5).bfloat16().double(),
        "gate_up": normal(experts, 2 * f, h) / h**0.5,
        "down": normal(experts, h, f) / f**0.5,
    }
    if rule.bias:
        inputs["bias"] = torch.randint(-8, 9, (experts,), generator=generator) / 64.0
    inputs["x"] = normal(workload.batch_size, workload.sequence_length, h)
    while (close := doubtful(inputs, rule)).any():
        inputs["x"][close] = normal(int(close.sum()), h)
    return {name: tensor.double().requires_grad_(name != "bias") for name, tensor in inputs.items()}


def doubtful(inputs: Mapping[str, Tensor], rule: Rule) -> Tensor:
    """[b, s], true for tokens that rounding might route or drop differently."""
    logits, _ = scores(inputs, rule)
    by = logits.sigmoid() + inputs["bias"] if rule.bias else logits
    best = by.topk(rule.k + 1).values
    close = (best[:, :-1] - best[:, 1:]).amin(-1) < MARGIN
    if rule.drop == "priority":
        chosen, gates = choose(inputs, rule)
        for tokens in torch.arange(len(chosen)).chunk(rule.groups):
            for expert in range(rule.experts):
                rows, _ = (chosen[tokens] == expert).nonzero(as_tuple=True)
                order = gates[tokens[rows]].amax(-1).sort(descending=True)
                edge = rule.slots(len(tokens))
                if len(rows) > edge and order.values[edge - 1] - order.values[edge] < GATE_MARGIN:
                    close[tokens[rows[order.indices[edge]]]] = True
    return close.view(inputs["x"].shape[:2])


def scores(inputs: Mapping[str, Tensor], rule: Rule) -> tuple[Tensor, Tensor]:
    """Logits and scores [T, E], in float32 at least (Fedus et al. 2022, section 2.4: selective precision)."""
    x, router = (inputs[name].to(torch.promote_types(inputs[name].dtype, torch.float32)) for name in ("x", "router"))
    logits = x.flatten(0, 1) @ router.mT
    return logits, logits.sigmoid() if rule.bias else logits.softmax(-1)


def choose(inputs: Mapping[str, Tensor], rule: Rule) -> tuple[Tensor, Tensor]:
    """The experts [T, k] of each token, best first, and their gates [T, k]; if k > 1, each gate is a share of their
    sum."""
    _, score = scores(inputs, rule)
    chosen = (score.detach() + inputs["bias"] if rule.bias else score.detach()).topk(rule.k).indices
    gates = score.gather(1, chosen)
    return chosen, gates / gates.sum(-1, keepdim=True) if rule.k > 1 else gates


def keep(chosen: Tensor, gates: Tensor, rule: Rule) -> Tensor:
    """[T, k], false where an expert is full (Lepikhin et al. 2020, algorithm 1): one token after another."""
    kept = torch.ones_like(chosen, dtype=torch.bool)
    if not rule.capacity:
        return kept
    for tokens in torch.arange(len(chosen)).chunk(rule.groups):
        taken = [0] * rule.experts
        turns = [(int(token), choice) for choice in range(rule.k) for token in tokens]
        if rule.drop == "priority":
            turns.sort(key=lambda turn: -float(gates[turn]))
        for turn in turns:
            expert = int(chosen[turn])
            kept[turn] = taken[expert] < rule.slots(len(tokens))
            taken[expert] += 1
    return kept


def plain(inputs: Mapping[str, Tensor], **variant: object) -> dict[str, Tensor]:
    """y = Σ_i g_i(x) E_i(x), every expert on every token; E_i(x) = W_down (silu(W_gate x) ∘ W_up x).

    ``output`` [b, s, h]; ``router_loss``, whose gradient is that of T (α L_aux + β L_z), the sum over tokens, as the
    output's cotangents are; ``auxiliary_loss`` and ``z_loss``, reported; counts; ``expert_bias`` after its update.

    L_aux is 1 when experts are chosen alike and scores are equal: E Σ f_i P_i, f_i the share of first choices in a
    group (Switch; GShard, times E²), or of all choices in the batch where nothing is dropped (Mixtral).
    """
    rule = Rule(**variant)  # type: ignore[arg-type]
    x, tokens = inputs["x"].flatten(0, 1), inputs["x"].shape[:2].numel()
    logits, score = scores(inputs, rule)
    chosen, gates = choose(inputs, rule)
    kept = keep(chosen, gates.detach(), rule)
    output = naive(x, gates * kept, chosen, inputs["gate_up"], inputs["down"])
    found = {"output": output.view_as(inputs["x"]), "tokens_per_expert": _count(chosen[kept], rule)}
    if rule.capacity:
        found["dropped"] = (~kept).sum()
    loss = torch.zeros((), dtype=logits.dtype, device=x.device)
    if rule.auxiliary:
        counted = (chosen[:, :1] if rule.capacity else chosen).chunk(rule.groups)
        parts = [
            (_count(part, rule).to(score.dtype) / part.numel() * each.sum(0) / len(each)).sum(0)
            for part, each in zip(counted, score.chunk(rule.groups), strict=True)
        ]
        auxiliary = rule.experts * torch.stack(parts).sum(0) / rule.groups
        loss, found["auxiliary_loss"] = loss + rule.auxiliary * auxiliary, reported(auxiliary)
    if rule.z:
        z = logits.logsumexp(-1).square().sum(0) / tokens
        loss, found["z_loss"] = loss + rule.z * z, reported(z)
    if rule.auxiliary or rule.z:
        found["router_loss"] = slope(tokens * loss)
    if rule.bias:
        load = found["tokens_per_expert"]
        found["expert_bias"] = inputs["bias"] + SPEED * (load.double().mean() - load).sign()
    return found


def _count(chosen: Tensor, rule: Rule) -> Tensor:
    return chosen.flatten().bincount(minlength=rule.experts)
