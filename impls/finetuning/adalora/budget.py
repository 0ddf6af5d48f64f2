"""AdaLoRA's budget: how many singular values are kept at each step, and which.

    b(t) = b₀                                          t ≤ t_i                 (equation 12)
           b_T + (b₀ − b_T) (1 − (t − t_i)/(T − t_f − t_i))³         between
           b_T                                         t ≥ T − t_f

    b₀ │▔▔▔▔╲
       │     ╲
       │       ╲__
    b_T│          ▔▔▔▔▔▔▔▔
       └────┬──────┬──────▶ t
           t_i   T − t_f

    I = |w ∇w|      Ī ← β₁ Ī + (1 − β₁) I      U ← β₂ U + (1 − β₂) |I − Ī|      s = Ī U      (equations 8 to 11)

The paper prints (t − t_i − t_f)/(T − t_i − t_f) in equation 12, which does not start at b₀; its code and PEFT have the
form above. t counts from 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

BETA = 0.85  # β₁ and β₂


@dataclass(frozen=True)
class Schedule:
    """``start`` and ``end``: b₀ and b_T, of all matrices together."""

    start: int
    end: int
    warmup: int  # t_i
    final: int  # t_f
    every: int  # ΔT
    total: int  # T

    def at(self, t: int) -> int | None:
        """The number of singular values to keep after step t; None where none is taken away in this step."""
        last = self.total - self.final
        if t >= last:
            return self.end
        if t <= self.warmup or t % self.every:
            return None
        left = 1 - (t - self.warmup) / (last - self.warmup)
        return int((self.start - self.end) * left**3 + self.end)


@dataclass(frozen=True)
class Allotted:
    """The arguments of a variant. ``rank`` and ``target``: r of a matrix at the start, and on average at the end;
    ``gamma``: γ; ``squared``: the regulariser is the paper's."""

    rank: int
    target: int
    alpha: float
    warmup: int
    final: int
    every: int
    gamma: float
    squared: bool = True

    def schedule(self, n: int, total: int) -> Schedule:
        """For n matrices and T steps."""
        return Schedule(self.rank * n, self.target * n, self.warmup, self.final, self.every, total)


@dataclass
class Importance:
    """Ī and U of every trained tensor."""

    sensitivity: dict[str, Tensor] = field(default_factory=dict)
    uncertainty: dict[str, Tensor] = field(default_factory=dict)

    def update(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            now = (weight * gradients[name]).abs()  # I
            before = self.sensitivity.get(name, torch.zeros_like(now))
            mean = self.sensitivity[name] = BETA * before + (1 - BETA) * now
            before = self.uncertainty.get(name, torch.zeros_like(now))
            self.uncertainty[name] = BETA * before + (1 - BETA) * (now - mean).abs()

    def score(self, name: str) -> Tensor:
        return self.sensitivity[name] * self.uncertainty[name]

    def triplet(self, p: str, values: str, q: str) -> Tensor:
        """S of each singular value with its vectors, [r] (equation 7)."""
        return self.score(values).flatten() + self.score(p).mean(0) + self.score(q).mean(1)


def kept(scores: Sequence[Tensor], budget: int) -> list[Tensor]:
    """Whether each singular value of each matrix is among the ``budget`` best of all (equation 6), [r] each."""
    together = torch.cat(list(scores))
    if budget >= len(together):
        return [torch.ones_like(score, dtype=torch.bool) for score in scores]
    worst = together.sort().values[len(together) - budget - 1]  # the best one that goes
    return [score > worst for score in scores]
