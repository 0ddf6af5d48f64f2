"""LoRA (Hu et al. 2021, equation 3) on matrices that tensor parallelism cuts (Shoeybi et al. 2019, §3, figure 3).

    column-parallel   Y_i = X W_iᵀ + s X Aᵀ B_iᵀ            W_i and B_i: this rank's rows; A is whole on every rank
    row-parallel      Z   = Σ_i (Y_i W_iᵀ + s Y_i A_iᵀ Bᵀ)  W_i and A_i: this rank's columns; B is whole on every rank

    W_i  [f/t, h] or [h, f/t], frozen      A  [r, h], A_i  [r, f/t]      B_i  [f/t, r], B  [h, r]      t ranks

          ┌─ W_1, A B_1 ─ σ ─ W_1, A_1 B ─┐
    X ─ f ┤                               ├ g ─ Z        f: x forward, Σ over ranks backward; g: the other way round
          └─ W_2, A B_2 ─ σ ─ W_2, A_2 B ─┘

Products with B distribute over the sum of g, so that the row-parallel adapter needs no message of its own forward. But
each rank has only its part of the gradient of a whole factor,

    ∂E/∂A = Σ_i s (∂E/∂Y_i B_i)ᵀ X          ∂E/∂B = Σ_i s (∂E/∂Z)ᵀ (Y_i A_iᵀ)

which must be summed, or the replicas of A and B drift apart. f in front of the factor itself says so: r·h elements,
once a step. Megatron's own layers sum the activations of rank r instead, r elements a token (``low``):

    column-parallel   f behind X Aᵀ: its gradient is whole before it meets A
    row-parallel      g behind Y_i A_iᵀ: B sees all of it
"""

from collections.abc import Mapping

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Function, Topology, Workload
from impls.finetuning.lora_parallel.spread import Block
from impls.parallelism.tensor_parallel.operators import copy, reduce

f, g = copy, reduce


def column(x: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float, group: dist.ProcessGroup) -> Tensor:  # noqa: N803
    """x [b, s, h], whole → [b, s, f/t]."""
    x = f(x, group)
    return F.linear(x, W) + s * F.linear(F.linear(x, f(A, group)), B)


def row(y: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float, group: dist.ProcessGroup) -> Tensor:  # noqa: N803
    """y [b, s, f/t] → [b, s, h], whole."""
    low = F.linear(y, A)  # [b, s, r], this rank's part of a sum
    return g(F.linear(y, W) + s * F.linear(low, f(B, group)), group)


def column_low(x: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float, group: dist.ProcessGroup) -> Tensor:  # noqa: N803
    low = f(F.linear(x, A), group)  # [b, s, r]
    return F.linear(f(x, group), W) + s * F.linear(low, B)


def row_low(y: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float, group: dist.ProcessGroup) -> Tensor:  # noqa: N803
    low = g(F.linear(y, A), group)  # [b, s, r], whole
    return g(F.linear(y, W), group) + s * F.linear(low, B)


class Adapted(Block):
    def __init__(self, topology: Topology, rank: int, alpha: float, low: bool) -> None:
        super().__init__(topology)
        self.s = alpha / rank
        self.first, self.second = (column_low, row_low) if low else (column, row)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """x [b, s, h] and this rank's parts → output [b, s, h]."""
        up, down = ([inputs[name] for name in (each, f"A_{each}", f"B_{each}")] for each in ("up", "down"))
        y = F.silu(self.first(inputs["x"], *up, self.s, dist.group.WORLD))  # [b, s, f/t]
        return {"output": self.second(y, *down, self.s, dist.group.WORLD)}


def build(workload: Workload, topology: Topology, **variant: float) -> Function:
    return Adapted(topology, **variant)
