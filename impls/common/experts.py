"""Qwen3-MoE's layer of experts (Yang et al. 2025, "Qwen3 Technical Report", §2), every expert on its tokens in turn.

y = Σ_i g_i(x) E_i(x)    over the k experts with the largest softmax(W_g x), whose shares g_i are scaled to the sum 1
E_i(x) = W_down (silu(W_gate x) ∘ W_up x)

E experts   k num_experts_per_tok   f moe_intermediate_size   h hidden_size   T tokens
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import MoeConfig, Unsupported, Workload
from impls.common.routers import RouterLoss


def without_experts(workload: Workload, who: str) -> None:
    """Raises Unsupported for a model with experts: ``who`` supports only dense layers."""
    if isinstance(workload.model, MoeConfig):
        raise Unsupported(f"{who} dense layers only; for a model with experts see the topic hybrid_3d")


def route(x: Tensor, router: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, h], W_g [E, h] → logits [T, E], experts and gates [T, k], best first; at least in float32 (Fedus et al.
    2022, §2.4)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    logits = F.linear(x.to(wide), router.to(wide))
    gates, experts = logits.softmax(-1).topk(k)
    return logits, experts, gates / gates.sum(-1, keepdim=True)


class Places(Protocol):
    """The part of the experts' weights that a rank holds."""

    def part(self, name: str, full: Tensor) -> Tensor:
        """This rank's part of the weights of this name."""

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The inverse of :meth:`part`, on every rank."""


def is_expert(name: str) -> bool:
    """Whether a parameter is the weights of experts."""
    return ".experts." in name


class Weights(nn.Module):
    """``number`` experts of width f: gate_up_proj [number, 2f, h], the gate's rows first, and down_proj [number, h,
    f]."""

    def __init__(self, number: int, h: int, f: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(number, 2 * f, h))
        self.down_proj = nn.Parameter(torch.empty(number, h, f))


class Experts(nn.Module):
    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.k, self.router_loss = config.num_experts_per_tok, RouterLoss(config)
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Weights(config.num_experts, config.hidden_size, config.moe_intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        logits, chosen, gates = route(tokens, self.gate.weight, self.k)
        self.router_loss.keep(logits.view(*x.shape[:-1], -1), chosen.view(*x.shape[:-1], -1))
        out = torch.zeros_like(tokens)
        for expert, (gate_up, down) in enumerate(zip(self.experts.gate_up_proj, self.experts.down_proj, strict=True)):
            rows, choice = (chosen == expert).nonzero(as_tuple=True)
            gate, up = (tokens[rows] @ gate_up.mT).chunk(2, -1)
            y = (F.silu(gate) * up) @ down.mT
            out = out.index_add(0, rows, (gates[rows, choice, None] * y).to(out.dtype))
        return out.view_as(x)
