"""AdaLoRA (Zhang et al. 2023, section 3): an update in the form of a singular value decomposition, pruned on the way.

    h = W₀ x + s P Λ Q x                                                       (equation 3)
    C = L + γ Σ_k (‖P_kᵀ P_k − I‖²_F + ‖Q_k Q_kᵀ − I‖²_F)                      (equations 4, 5)
    Λ ← the b(t) best of all matrices' singular values, 0 elsewhere            (equation 6)

    W₀  [d, k], frozen      P  [d, r]      Λ  [r, 1]      Q  [r, k]      s = α/r      n  adapted matrices

A singular value of a matrix competes with those of all others, so some keep a high rank and others lose theirs. One
that was set to 0 has a gradient and may come back, until T − t_f: from then on the choice is final. How values are
judged and how many are kept is in budget.py.

``squared=False`` is PEFT's regulariser: (1/2n) Σ_k (‖P_kᵀ P_k − I‖_F + ‖Q_k Q_kᵀ − I‖_F).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import Batch, Topology, Workload
from impls.common.experts import without_experts
from impls.common.mesh import device
from impls.common.optimizer import clip, optimizer
from impls.common.step import accumulate
from impls.common.sums import sum_flat
from impls.common.trained import Trained
from impls.common.weights import build_model
from impls.finetuning.adalora.budget import Allotted, Importance, kept
from impls.finetuning.adalora.shapes import VALUES, P, Q, initial, number
from impls.finetuning.lora.base import biased, frozen
from impls.finetuning.lora.shapes import targets


class AdaLoRA(nn.Module):
    """x [..., k] → h [..., d]."""

    def __init__(self, base: nn.Linear, P: Tensor, Λ: Tensor, Q: Tensor, s: float) -> None:  # noqa: N803
        super().__init__()
        self.W, self.b, self.s = base.weight, base.bias, s
        self.P, self.Λ, self.Q = nn.Parameter(P), nn.Parameter(Λ), nn.Parameter(Q)

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, (self.Λ * self.Q).to(x.dtype))  # [..., r]
        return biased(F.linear(x, self.W) + self.s * F.linear(low, self.P.to(x.dtype)), self.b)  # [..., d]

    def tilts(self) -> tuple[Tensor, Tensor]:
        """Pᵀ P − I and Q Qᵀ − I, [r, r] both."""
        unit = torch.eye(len(self.Q), device=self.Q.device)
        return self.P.T @ self.P - unit, self.Q @ self.Q.T - unit


class AdaptiveBudget(Trained):
    def __init__(self, workload: Workload, topology: Topology, allotted: Allotted) -> None:
        without_experts(workload, "adapters are set up here with")
        self.workload, self.ranks = workload, topology.dp
        self.gamma, self.squared = allotted.gamma, allotted.squared
        n, r = number(workload.model), allotted.rank
        self.schedule = allotted.schedule(n, workload.steps)
        self.model = build_model(workload).requires_grad_(False)
        start = {name: tensor.to(device()) for name, tensor in initial(workload, r)}
        self.adapted: dict[str, AdaLoRA] = {}
        for name, _ in targets(workload.model):
            parts = (start[f"{name}.{part}"] for part in (P, VALUES, Q))
            self.adapted[name] = AdaLoRA(self.model.get_submodule(name), *parts, allotted.alpha / r)
            self.model.set_submodule(name, self.adapted[name])
        each = ((name, {Q: layer.Q, VALUES: layer.Λ, P: layer.P}) for name, layer in self.adapted.items())
        self.weights = {f"{name}.{part}": p for name, parts in each for part, p in parts.items()}
        self.optimizer = optimizer(self.weights.values(), workload)
        self.importance, self.t = Importance(), 0
        self.masks = [torch.ones(r, dtype=torch.bool, device=device()) for _ in range(n)]

    def backward(self, batch: Batch) -> Tensor:
        # 1. L: this rank's share of the batch.
        loss = accumulate(self.model, batch, self.workload, dist.get_rank(), self.ranks, scale=1 / self.ranks)
        sum_flat([p.grad for p in self.weights.values()], dist.group.WORLD)
        # 2. γ R: the same on every rank, and once a step.
        tilts = [tilt for layer in self.adapted.values() for tilt in layer.tilts()]
        lengths = torch.stack([tilt.square().sum() for tilt in tilts])
        (self.gamma * (lengths.sum() if self.squared else lengths.sqrt().mean())).backward()
        return loss

    def update(self) -> None:
        clip([p.grad for p in self.weights.values()], self.workload.max_grad_norm)
        self.t += 1
        last = self.schedule.total - self.schedule.final
        # 1. How much each weight matters, before it moves.
        if self.t < last:
            weights = {name: p.detach() for name, p in self.weights.items()}
            self.importance.update(weights, {name: p.grad for name, p in self.weights.items() if p.grad is not None})
        # 2. A step of all of P, Λ, Q.
        self.optimizer.step()
        self.optimizer.zero_grad()
        # 3. The budget's choice; after T − t_f that of T − t_f.
        budget = self.schedule.at(self.t)
        if budget is not None and self.t <= last:
            scores = [self.importance.triplet(*(f"{name}.{part}" for part in (P, VALUES, Q))) for name in self.adapted]
            self.masks = kept(scores, budget)
        if budget is not None:
            with torch.no_grad():
                for layer, mask in zip(self.adapted.values(), self.masks, strict=True):
                    layer.Λ.mul_(mask[:, None])

    def observe(self) -> Mapping[str, float]:
        return {"rank": float(sum(int(layer.Λ.count_nonzero()) for layer in self.adapted.values()))}

    def frozen(self) -> Mapping[str, Tensor]:
        return frozen({name: (layer.W, layer.b) for name, layer in self.adapted.items()})


def build(workload: Workload, topology: Topology, **variant: Any) -> AdaptiveBudget:
    return AdaptiveBudget(workload, topology, Allotted(**variant))
