"""Expert parallelism (Lepikhin et al. 2020, "GShard", sections 2.2 and 3.2): a layer has E experts, a router sends each
token to k of them, and every rank holds E/ep experts, to which the others send their tokens.

    y = Σ_i g_i(x) E_i(x)       over the k experts that the router chooses for x (Shazeer et al. 2017, equation 1)

    tokens ─ router ─ permute ─ all-to-all ─ grouped experts ─ all-to-all ─ unpermute and add ─ y
               │                 uneven splits                 the same way back
               └ auxiliary loss, z-loss, or a bias on what is chosen

The second half, ``combine``, is the transpose of the first, ``dispatch``: the backward pass of each is the other, and a
step sends a row of h to its expert and back once forward and once backward, 4 k T h elements if no expert is near.

Routers: Switch (k = 1), GShard (k = 2) with a capacity, and ST-MoE/Mixtral and DeepSeek-V3 without (:mod:`router`).
Capacity belongs to a group of tokens, of which a rank has whole ones: what is dropped does not depend on the ranks.

    t tokens of this rank   T of all   E experts   k choices   h hidden_size   f intermediate_size   m rows received
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Topology, Workload
from impls.parallelism.expert_parallel.exchange import Combine, Dispatch, Group, Plan, add_up, plan
from impls.parallelism.expert_parallel.experts import experts as grouped_experts
from impls.parallelism.expert_parallel.problem import slope
from impls.parallelism.expert_parallel.router import balance, choose, keep, z_loss
from impls.parallelism.expert_parallel.rule import SPEED, Rule
from impls.parallelism.expert_parallel.spread import Spread, summed
from impls.parallelism.tensor_parallel.operators import copy, reduce


def there_and_back(
    x: Tensor, gates: Tensor, way: Plan, gate_up: Tensor, down: Tensor, replicas: Group | None, tp: Group | None
) -> Tensor:
    """This rank's tokens [t, h] with their gates [t, k] to the experts, and the sum of what comes back, [t, h].
    ``replicas``: over which ranks the gradients of the experts' weights are summed, if at once. Over tp, if given, the
    experts are cut like an MLP: f before the gates and tokens go to them, g behind."""
    cut = tp is not None and tp.size() > 1
    if cut:
        x, gates = copy(x, tp), copy(gates, tp)
    rows, p = Dispatch.apply(x, way), Dispatch.apply(gates.flatten(), way)
    output = Combine.apply(grouped_experts(rows, p, gate_up, down, way.counts, replicas), way, len(x))
    return reduce(output, tp) if cut else output


class ExpertParallel:
    def __init__(self, topology: Topology, rule: Rule) -> None:
        self.rule, self.dp = rule, topology.dp
        self.spread = Spread(topology, rule.experts)
        self.split, self.gather = self.spread.split, self.spread.gather

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """x [b/dp, s, h], router [E, h], gate_up [E/ep, 2f/tp, h], down [E/ep, h, f/tp], bias [E] →
        output [b/dp, s, h], and this rank's part of losses and counts."""
        rule, x = self.rule, inputs["x"].flatten(0, 1)
        wide = torch.promote_types(x.dtype, torch.float32)
        router = summed(inputs["router"], self.spread.dp).to(wide)
        logits = F.linear(x.to(wide), router)  # in float32 at least: selective precision (Fedus et al. 2022, §2.4)
        scores, experts, gates = choose(logits, inputs.get("bias"), rule)
        kept = keep(experts, gates.detach(), rule, rule.groups // self.dp) if rule.capacity else None
        way, load = plan(experts, kept, rule.experts, self.spread.ep)

        spread = self.spread
        output = there_and_back(x, gates, way, inputs["gate_up"], inputs["down"], spread.replicas, spread.tp)
        found = {"output": output.view_as(inputs["x"]), "tokens_per_expert": load}

        if kept is not None:
            found["dropped"] = (~kept).sum()
        found |= self._losses(logits, scores, experts, load)
        if rule.bias:
            found["expert_bias"] = self._moved(inputs["bias"], load)
        return found

    def _losses(self, logits: Tensor, scores: Tensor, experts: Tensor, load: Tensor) -> dict[str, Tensor]:
        """T (α L_aux + β L_z). With a capacity, shares are those of first choices in a group; without, of all choices
        in the global batch (Qiu et al. 2025, arXiv:2501.11873)."""
        rule, tokens, parts = self.rule, len(logits) * self.dp, {}
        if rule.auxiliary:
            if rule.capacity:
                groups = rule.groups // self.dp
                firsts = F.one_hot(experts[:, 0].view(groups, -1), rule.experts)
                shares = firsts.to(scores.dtype).mean(1)
            else:
                groups = 1
                loads = add_up(load.clone(), self.spread.dp)
                shares = loads.to(scores.dtype)[None] / (rule.k * tokens)
            parts["auxiliary_loss"] = balance(shares, scores, rule.experts, groups, groups * self.dp)
        if rule.z:
            parts["z_loss"] = z_loss(logits, tokens)
        if not parts:
            return {}
        loss = rule.auxiliary * parts["auxiliary_loss"] + rule.z * parts.get("z_loss", 0.0)
        return {name: part.detach() for name, part in parts.items()} | {"router_loss": slope(tokens * loss)}

    def _moved(self, bias: Tensor, load: Tensor) -> Tensor:
        """b_i + γ sign(mean load − load_i), the load that of all ranks (Wang et al. 2024, algorithm 1)."""
        loads = add_up(load.float(), self.spread.dp)
        return bias.float() + SPEED * (loads.mean() - loads).sign()


def build(workload: Workload, topology: Topology, **variant: object) -> ExpertParallel:
    return ExpertParallel(topology, Rule(**variant))
