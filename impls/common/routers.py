"""The losses of the routers of a model with experts.

    L = 1/N Σ over tokens (cross-entropy + α L_balance + β L_z)    N tokens of the batch that have a label

    L_balance = E Σ_i f_i P_i                  of the token's micro-batch, its sequence or the batch, of n such tokens
                f_i = 1/(k n) Σ_t 1(t chose i)     P_i = 1/n Σ_t p_ti     p_t = softmax(x_t)
                    (Fedus et al. 2022, "Switch Transformers", eq. 4-6, there k = 1;
                     DeepSeek-AI 2024, "DeepSeek-V3", eq. 17-20, of a sequence;
                     Qiu et al. 2025, "Demons in the Detail", arXiv:2501.11873, eq. 4, of the batch)
    L_z       = (log Σ_i exp x_ti)²            of the token (Zoph et al. 2022, "ST-MoE", eq. 5)

So a micro-batch or a sequence counts with its share n/N of the tokens. The f_i have no gradient, and what a trainer
reports is the cross-entropy alone.

    E experts   k choices of a token   x logits   b sequences of s tokens, T in all, in g micro-batches or sequences
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import ModelConfig, MoeConfig, Unsupported


def has_router_losses(config: ModelConfig) -> bool:
    return isinstance(config, MoeConfig) and config.router_losses


def without_router_losses(config: ModelConfig, reason: str) -> None:
    """Raises Unsupported, with the reason, for a model whose routers have losses."""
    if has_router_losses(config):
        raise Unsupported(reason)


def slope(loss: Tensor) -> Tensor:
    """The loss with its gradient but without its value."""
    return loss - loss.detach()


def _alone(counts: Tensor) -> Tensor:
    return counts


class RouterLoss:
    """The losses of a layer's router. Each forward pass keeps what they are computed from, and whoever computes the
    loss of its tokens takes it. ``balanced``: how many sequences have one balance loss; 0: those of a forward pass.
    ``add`` sums counts over the ranks that have other tokens of the same sequences, or of the batch; ``copies``: the
    ranks that have the same tokens, and whose gradients are added."""

    def __init__(self, config: MoeConfig, add: Callable[[Tensor], Tensor] = _alone, copies: int = 1) -> None:
        self.config, self.add, self.copies = config, add, copies
        self.balanced = 1 if config.seq_aux else 0
        self.kept: tuple[Tensor, Tensor] | None = None

    def keep(self, x: Tensor, chosen: Tensor) -> None:
        """Logits [b, s, E] and choices [b, s, k] of a micro-batch."""
        if self.config.router_losses and torch.is_grad_enabled():
            self.kept = x, chosen

    def take(self, labels: Tensor) -> Tensor:
        """The mean of α L_balance + β L_z over the tokens with a label, a scalar; labels [b, s]."""
        assert self.kept is not None
        (x, chosen), self.kept = self.kept, None
        config, counted = self.config, (labels >= 0).to(x.dtype)  # [b, s]
        loss = config.router_z_loss_coef * (counted * x.logsumexp(-1).square()).sum()
        if config.router_aux_loss_coef:
            loss = loss + config.router_aux_loss_coef * self.balance(x, chosen, counted)
        return loss / counted.sum().clamp(min=1) / self.copies

    def balance(self, x: Tensor, chosen: Tensor, counted: Tensor) -> Tensor:
        """Σ over micro-batches or sequences of n L_balance, this rank's tokens' part of it."""
        number, g = x.shape[-1], len(x) // (self.balanced or len(x))
        counted = counted.reshape(g, -1, 1)  # [g, T/g, 1]
        p = (counted * x.softmax(-1).reshape(g, -1, number)).sum(1)  # [g, E]: n P
        chose = F.one_hot(chosen, number).sum(-2).reshape(g, -1, number)  # [g, T/g, E]
        count, n = self.add(torch.cat(((counted * chose).sum(1), counted.sum(1)), 1)).split((number, 1), 1)
        f = count / (chosen.shape[-1] * n.clamp(min=1))  # [g, E]
        return number * (f * p).sum()


def routers(*models: nn.Module) -> list[RouterLoss]:
    found = (getattr(part, "router_loss", None) for model in models for part in model.modules())
    return [router for router in found if router is not None]


def taken(routers: list[RouterLoss], labels: Tensor) -> list[Tensor]:
    """The losses of the routers that a forward pass went through; labels [b, s]."""
    return [router.take(labels) for router in routers if router.kept]
