"""Methods that put small modules into each layer: bottleneck adapters and (IA)³.

Bottleneck adapters (Houlsby et al. 2019, §2.1, figure 2): after each of a layer's two halves and before its residual
connection, x ← x + W_up g(W_down x + b) + c. d [h] is projected to m numbers and back: 2md + d + m parameters.

    the layer    x ──► attention ──► adapter ──►(+)──► MLP ──► adapter ──►(+)──►
                 └───────────────────────────────┘ └─────────────────────┘

g is GELU, as in the authors' code. The paper also trains the layer norms, which stay frozen here.

(IA)³ (Liu et al. 2022, §3.3): softmax(Q (l_k ⊙ Kᵀ)/√d)(l_v ⊙ V) and W₂ (l_ff ⊙ γ(W₁ x)), three vectors a layer.
Qwen3 norms each head's key after its projection. l_k acts before that norm, where it can be folded into W_k, so the
norm takes away any factor that all of a head's elements share. In a gated MLP γ(W₁ x) is the input of down_proj.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impls.common.decoder import Decoder
from impls.finetuning.prompt_methods.shapes import HALVES, SCALED


class Adapter(nn.Module):
    """x [..., d] → [..., d]."""

    def __init__(self, d: int, m: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(d, m), nn.Linear(m, d)  # float32

    def forward(self, x: Tensor) -> Tensor:
        W_down, b, W_up, c = (p.to(x.dtype) for p in self.parameters())  # noqa: N806
        low = F.gelu(F.linear(x, W_down, b))  # [..., m]
        return x + F.linear(low, W_up, c)


class Half(nn.Module):
    """Attention or MLP of a layer with an adapter behind it."""

    def __init__(self, base: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.base, self.adapter = base, adapter

    def forward(self, *inputs: Tensor) -> Tensor:
        y: Tensor = self.adapter(self.base(*inputs))
        return y


def insert_adapters(model: Decoder, m: int) -> None:
    for layer in model.model.layers:
        for half in HALVES:
            setattr(layer, half, Half(getattr(layer, half), Adapter(model.config.hidden_size, m)))


class ScaledOutput(nn.Module):
    """l ⊙ (W x), l [out]: keys and values."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.ia3_l = base, nn.Parameter(torch.ones(base.out_features))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)  # [..., out]
        return (self.ia3_l * y).to(y.dtype)

    def factor(self) -> Tensor:
        """The same on W [out, in]."""
        return self.ia3_l[:, None]  # [out, 1]


class ScaledInput(nn.Module):
    """W (l ⊙ x), l [in]: the inner activations of the MLP."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.ia3_l = base, nn.Parameter(torch.ones(base.in_features))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base((self.ia3_l * x).to(x.dtype))
        return y

    def factor(self) -> Tensor:
        return self.ia3_l  # [in]


def insert_scales(model: Decoder) -> None:
    for layer in model.model.layers:
        for name in SCALED:
            linear = layer.get_submodule(name)
            layer.set_submodule(name, ScaledInput(linear) if name.endswith("down_proj") else ScaledOutput(linear))


def scaled(model: nn.Module) -> Iterator[tuple[str, ScaledOutput | ScaledInput]]:
    return ((name, each) for name, each in model.named_modules() if isinstance(each, ScaledOutput | ScaledInput))


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """A merged model costs nothing more than the base (§3.3)."""
    for _, layer in scaled(model):
        layer.base.weight.copy_(layer.base.weight * layer.factor())


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    for _, layer in scaled(model):
        layer.base.weight.copy_(layer.base.weight / layer.factor())
