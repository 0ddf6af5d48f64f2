"""Expert parallelism (Lepikhin et al. 2020, "GShard", sections 2.2 and 3.2): a layer has E experts, a router sends each
token to k of them, and every rank holds E/ep experts, to which the others send their tokens.

    y_s = Σ_e G_{s,e} FFN_e(x_s)                         (GShard, equation 3; G_{s,e} = 0 for all but k experts)
    FFN_e(x) = W_down,e (silu(W_gate,e x) ∘ W_up,e x)    (Mixtral's, where GShard has a ReLU)

The naive form computes every expert on every token. The real one has the four steps of MegaBlocks (Gale et al. 2022,
section 2), with an all-to-all in two of them:

    x ─ 1 router ─ 2 dispatch ─────────── 3 experts ─ 4 combine ──────────── y
        │          permute, all-to-all    each on     all-to-all, permute,
        │          with uneven splits     its rows    add up
        └ auxiliary loss, z-loss, or a bias on the choice

A token's rows travel to its experts and back once forward and once backward: 4 k T h elements, if no expert is local.
The gate of a row travels with it and multiplies before W_down. The result is the same as after W_down, but nothing of
width h has to be kept for the gradient of the gate.

Routers: Switch (k = 1) and GShard (k = 2) with a capacity; ST-MoE/Mixtral and DeepSeek-V3 without (``router``).

    s  a token of t on this rank, T on all    G [t, E]  gates, of which [t, k] are kept    h  hidden_size
    e  an expert of E                         m  rows that this rank's experts receive     f  intermediate_size
"""

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import MoeConfig, Topology, Unsupported, Workload
from impls.common.experts import Weights, route
from impls.common.routers import RouterLoss, slope
from impls.parallelism.expert_parallel.dispatch import Group, Route, add_up, combine, dispatch, plan
from impls.parallelism.expert_parallel.router import Rule, choose, keep, losses, moved
from impls.parallelism.expert_parallel.spread import Spread, summed
from impls.parallelism.tensor_parallel.operators import copy, reduce


def naive(x: Tensor, gates: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Every expert on every token: x [t, h], gates and experts [t, k], gate_up [E, 2f, h], the gate's rows first,
    down [E, h, f] → [t, h]."""
    g = gates.new_zeros(len(x), len(down)).scatter(1, experts, gates).to(x.dtype)  # [t, E]
    y = torch.zeros_like(x)  # [t, h]
    for e in range(len(down)):
        gate, up = (x @ gate_up[e].mT).chunk(2, -1)  # [t, f] each
        y = y + g[:, e, None] * ((F.silu(gate) * up) @ down[e].mT)  # [t, h]
    return y


def feed_forward(x: Tensor, p: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """p FFN_e(x): the rows x [m_e, h] of one expert, their gates p [m_e], gate_up [2f, h], down [h, f] → [m_e, h]."""
    gate, up = (x @ gate_up.mT).chunk(2, -1)  # [m_e, f] each
    return (p[:, None] * F.silu(gate) * up) @ down.mT  # [m_e, h]


def expert_parallel(
    x: Tensor, gates: Tensor, way: Route, gate_up: Tensor, down: Tensor, tp: Group | None = None
) -> Tensor:
    """The result of ``naive`` for this rank's tokens, with this rank's experts: x [t, h], gates [t, k], gate_up
    [E/ep, 2f, h], down [E/ep, h, f] → [t, h]. Over ``tp`` each expert is cut as an MLP is, to f/tp."""
    if tp is not None:
        x, gates = copy(x, tp), copy(gates, tp)

    # 2. Dispatch: each token, and its gates, to its k experts.
    t, k = gates.shape
    rows = dispatch(x[:, None].expand(t, k, -1).flatten(0, 1), way)  # [t·k, h] → [m, h]
    p = dispatch(gates.flatten(), way).to(x.dtype)  # [t·k] → [m]

    # 3. Experts: each on its own run of rows.
    runs = zip(rows.split(way.counts), p.split(way.counts), gate_up, down, strict=True)
    y = torch.cat([feed_forward(*run) for run in runs])  # [m, h]

    # 4. Combine: back to the tokens, whose rows are added.
    output = combine(y, way, t * k).view(t, k, -1).sum(1)  # [m, h] → [t·k, h] → [t, h]
    return reduce(output, tp) if tp is not None else output


class ExpertParallel:
    """A layer with all reported values of its router, as a function of its inputs and weights."""

    def __init__(self, topology: Topology, rule: Rule) -> None:
        self.rule, self.spread = rule, Spread(topology, rule.experts)
        self.split, self.gather = self.spread.split, self.spread.gather

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """x [b/dp, s, h], router [E, h], gate_up [E/ep, 2f/tp, h], down [E/ep, h, f/tp], bias [E] →
        output [b/dp, s, h], and this rank's part of losses and counts."""
        rule, spread, x = self.rule, self.spread, inputs["x"].flatten(0, 1)  # [t, h]
        router = summed(inputs["router"], spread.dp)  # every rank has it
        gate_up, down = (summed(inputs[name], spread.replicas) for name in ("gate_up", "down"))

        # 1. Router, in float32 at least (Fedus et al. 2022, section 2.4: selective precision).
        wide = torch.promote_types(x.dtype, torch.float32)
        logits = F.linear(x.to(wide), router.to(wide))  # [t, E]
        scores, experts, gates = choose(logits, inputs.get("bias"), rule)  # [t, E], [t, k], [t, k]
        kept = keep(experts, gates.detach(), rule, rule.groups // spread.dp.size()) if rule.capacity else None  # [t, k]

        # 2. to 4.
        way = plan(experts, kept, rule.experts, spread.ep)
        output = expert_parallel(x, gates, way, gate_up, down, spread.tp)  # [t, h]

        found = {"output": output.view_as(inputs["x"]), "tokens_per_expert": way.load}
        if kept is not None:
            found["dropped"] = (~kept).sum()
        if rule.auxiliary or rule.z:
            parts, loss = losses(logits, scores, experts, way.load, rule, spread.dp)
            found |= {name: part.detach() for name, part in parts.items()} | {"router_loss": slope(loss)}
        if rule.bias:
            found["expert_bias"] = moved(inputs["bias"], way.load, spread.dp)
        return found


class ParallelExperts(nn.Module):
    """The same layer in a decoder: x [b, s, h] → [b, s, h], with the parameter names of the dense layer. Gradients are
    only this rank's; an expert's gradient covers all tokens along ep. Without ``sums`` x is [s, b, h], and the output
    is this rank's part of a sum over tp, as is the router's gradient: of the router's own losses each rank has 1/tp.
    These count the choices of all ranks of ``counted``, over which sequences are cut, or the batch."""

    def __init__(self, config: MoeConfig, ep: Group, tp: Group, counted: Group, sums: bool = True) -> None:
        super().__init__()
        number, h, f = config.num_experts, config.hidden_size, config.moe_intermediate_size
        if number % ep.size():
            raise Unsupported(f"ep {ep.size()} does not divide {number} experts")
        if f % tp.size():
            raise Unsupported(f"tp {tp.size()} does not divide moe_intermediate_size {f}")
        self.number, self.k, self.ep, self.tp = number, config.num_experts_per_tok, ep, tp if sums else None
        self.router_loss = RouterLoss(config, partial(add_up, group=counted), copies=1 if sums else tp.size())
        self.gate = nn.Linear(h, number, bias=False)
        self.experts = Weights(number // ep.size(), h, f // tp.size())

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # [t, h]
        logits, experts, gates = route(tokens, self.gate.weight, self.k)  # [t, E], [t, k] twice
        kept = (each.view(*x.shape[:2], -1) for each in (logits, experts))
        self.router_loss.keep(*(each if self.tp else each.transpose(0, 1) for each in kept))  # [b, s, E], [b, s, k]
        way = plan(experts, None, self.number, self.ep)
        weights = self.experts.gate_up_proj, self.experts.down_proj
        return expert_parallel(tokens, gates, way, *weights, self.tp).view_as(x)


def build(workload: Workload, topology: Topology, **variant: object) -> ExpertParallel:
    return ExpertParallel(topology, Rule(**variant))
