"""The layer of experts with grouped products, as Transformers 5 runs it by default, for engines that count calls."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impls.common.experts import Experts, route


class Grouped(nn.Module):
    """Tokens sorted by their expert are multiplied with all experts at once, in bfloat16."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.gate, self.experts, self.k = experts.gate, experts.experts, experts.k

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # [T, h]
        _, chosen, gates = route(tokens, self.gate.weight, self.k)  # [T, k]
        order = chosen.flatten().argsort(stable=True)  # [T k]
        ends = chosen.flatten().bincount(minlength=len(self.experts.down_proj)).cumsum(0).to(torch.int32)  # [E]
        gate_up, down = (w.bfloat16().mT for w in (self.experts.gate_up_proj, self.experts.down_proj))
        gate, up = F.grouped_mm(tokens[order // self.k].bfloat16(), gate_up, offs=ends).chunk(2, -1)
        y = F.grouped_mm(F.silu(gate) * up, down, offs=ends).to(x.dtype)  # [T k, h]
        weighted = gates.flatten()[order, None].to(x.dtype) * y
        return torch.zeros_like(tokens).index_add(0, order // self.k, weighted).view_as(x)


def grouped(module: nn.Module) -> nn.Module:
    """A layer of experts, or a module that has some."""
    if isinstance(module, Experts):
        return Grouped(module)
    for part in module.modules():
        if isinstance(getattr(part, "mlp", None), Experts):
            part.mlp = Grouped(part.mlp)  # type: ignore[assignment, arg-type]
    return module
