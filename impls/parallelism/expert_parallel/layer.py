"""A decoder's layer of experts, of which this rank has E/ep, and of each of these an f/t (see ``spread``)."""

from torch import Tensor, nn

from harness.spec import MoeConfig, Unsupported
from impls.common.experts import Weights, route
from impls.parallelism.expert_parallel.exchange import Group, plan
from impls.parallelism.expert_parallel.reference import there_and_back


class ParallelExperts(nn.Module):
    """[b, s, h] → [b, s, h]; the parameters bear the names of the dense layer's. Their gradients are this rank's
    alone: of an expert the sum over all tokens of the ranks along ep. Without ``sums`` the output is this rank's part
    of a sum over tp, and the router's gradient too."""

    def __init__(self, config: MoeConfig, ep: Group, tp: Group, sums: bool = True) -> None:
        super().__init__()
        number, h, f = config.num_experts, config.hidden_size, config.moe_intermediate_size
        if number % ep.size():
            raise Unsupported(f"ep {ep.size()} does not divide {number} experts")
        if f % tp.size():
            raise Unsupported(f"tp {tp.size()} does not divide moe_intermediate_size {f}")
        self.number, self.k, self.ep, self.tp = number, config.num_experts_per_tok, ep, tp if sums else None
        self.gate = nn.Linear(h, number, bias=False)
        self.experts = Weights(number // ep.size(), h, f // tp.size())

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        experts, gates = route(tokens, self.gate.weight, self.k)
        way, _ = plan(experts, None, self.number, self.ep)
        weights = self.experts.gate_up_proj, self.experts.down_proj
        return there_and_back(tokens, gates, way, *weights, None, self.tp).view_as(x)
