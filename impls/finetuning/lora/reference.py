"""LoRA (Hu et al. 2021, §4.1): a frozen matrix W₀ learns an update of low rank.

    h = W₀ x + s B A x            (equation 3; a bias of the model is frozen too, and added last)
    W₀  [d, k], frozen      A  [r, k]      B  [d, r]      r  rank, far below d and k      s  a constant

    LoRA      s = α/r: the step does not have to be tuned again with every r
    rsLoRA    s = α/√r: activations and gradients then stay of one size as r grows (Kalajdzievski 2023, theorem 3.2)
    LoRA+     B's steps are λ times A's (Hayou et al. 2024, §1): equal ones are too small for B in wide models
    DoRA      W' = m ⊙ V/‖V‖, V = W₀ + s B A: m is trained, ‖V‖ is not differentiated (Liu et al. 2024, equations 5, 11)

In the paper of DoRA ‖·‖ is the norm of each column of a matrix [k, d]; for W [d, k], as PyTorch stores it, these are
the d rows. A merged model has W' in place of W₀ and costs nothing more than before (section 4.1).
Only A, B and m have gradients and optimizer states. They are few, and in float32 whatever the base's precision, so that
they need no other master weights. Ranks that share a batch send their gradients alone.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import Batch, Topology, Workload
from impls.common.experts import without_experts
from impls.common.mesh import device
from impls.common.optimizer import optimizer
from impls.common.step import accumulate
from impls.common.sums import sum_flat
from impls.common.trained import Trained
from impls.common.weights import build_model
from impls.finetuning.lora.base import biased, frozen
from impls.finetuning.lora.plain import initial
from impls.finetuning.lora.shapes import MAGNITUDE, scale, targets


class LoRA(nn.Module):
    """x [..., k] → h [..., d]."""

    def __init__(self, base: nn.Linear, A: Tensor, B: Tensor, s: float) -> None:  # noqa: N803
        super().__init__()
        self.W, self.b, self.A, self.B, self.s = base.weight, base.bias, nn.Parameter(A), nn.Parameter(B), s

    def forward(self, x: Tensor) -> Tensor:
        return biased(self.product(x), self.b)

    def product(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.A.to(x.dtype))  # [..., r]
        return F.linear(x, self.W) + self.s * F.linear(low, self.B.to(x.dtype))  # [..., d]

    def trained(self) -> dict[str, nn.Parameter]:
        return {"lora_A.weight": self.A, "lora_B.weight": self.B}

    @torch.no_grad()
    def merge(self) -> None:
        self.W += self.s * self.B @ self.A

    @torch.no_grad()
    def unmerge(self) -> None:
        self.W -= self.s * self.B @ self.A


class DoRA(LoRA):
    """m [d] is the length of each row of W', and B A turns its direction."""

    def __init__(self, base: nn.Linear, A: Tensor, B: Tensor, s: float, m: Tensor) -> None:  # noqa: N803
        super().__init__(base, A, B, s)
        self.m = nn.Parameter(m)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """‖V‖ [d]: a constant to autograd, which saves the memory of differentiating it (section 4.3)."""
        return torch.linalg.vector_norm(self.W + self.s * self.B @ self.A, dim=1)

    def product(self, x: Tensor) -> Tensor:
        # (m/‖V‖) ⊙ V x, without a matrix V.
        return super().product(x) * (self.m / self.norm()).to(x.dtype)

    def trained(self) -> dict[str, nn.Parameter]:
        return {**super().trained(), MAGNITUDE: self.m}

    @torch.no_grad()
    def merge(self) -> None:
        self.length = self.norm()  # [d], needed to find the way back
        self.W.copy_((self.W + self.s * self.B @ self.A) * (self.m / self.length)[:, None])

    @torch.no_grad()
    def unmerge(self) -> None:
        self.W.copy_(self.W * (self.length / self.m)[:, None] - self.s * self.B @ self.A)


class LowRankAdaptation(Trained):
    """``ratio``: LoRA+'s λ."""

    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        rank: int,
        alpha: float,
        rslora: bool = False,
        ratio: float = 1.0,
        dora: bool = False,
    ) -> None:
        without_experts(workload, "adapters are set up here with")
        self.workload, self.ranks = workload, topology.dp
        self.model = build_model(workload).requires_grad_(False)
        start = {name: tensor.to(device()) for name, tensor in initial(workload, rank, dora)}
        s, self.adapted = scale(rank, alpha, rslora), dict[str, LoRA]()
        for name, _ in targets(workload.model):
            base, A, B = self.model.get_submodule(name), start[f"{name}.lora_A.weight"], start[f"{name}.lora_B.weight"]  # noqa: N806
            self.adapted[name] = DoRA(base, A, B, s, start[f"{name}.{MAGNITUDE}"]) if dora else LoRA(base, A, B, s)
            self.model.set_submodule(name, self.adapted[name])
        self.weights = {f"{name}.{n}": p for name, layer in self.adapted.items() for n, p in layer.trained().items()}
        fast = [layer.B for layer in self.adapted.values()]
        slow = [p for layer in self.adapted.values() for p in layer.trained().values() if p is not layer.B]
        self.optimizer = optimizer([{"params": slow}, {"params": fast, "lr": ratio * workload.lr}], workload)

    def backward(self, batch: Batch) -> Tensor:
        # 1. This rank's share of the batch: no gradient of a frozen weight is computed.
        loss = accumulate(self.model, batch, self.workload, dist.get_rank(), self.ranks, scale=1 / self.ranks)
        # 2. One message of all adapters.
        sum_flat([p.grad for p in self.weights.values() if p.grad is not None], dist.group.WORLD)
        return loss

    def frozen(self) -> Mapping[str, Tensor]:
        return frozen({name: (layer.W, layer.b) for name, layer in self.adapted.items()})

    def merged(self) -> Mapping[str, Tensor]:
        for layer in self.adapted.values():
            layer.merge()
        return self.frozen()

    def unmerge(self) -> None:
        for layer in self.adapted.values():
            layer.unmerge()


def build(workload: Workload, topology: Topology, **variant: float) -> LowRankAdaptation:
    return LowRankAdaptation(workload, topology, **variant)
