"""The parts of a training step of the decoder as modules, for engines that count the FLOPs of what they see called.

The layers are alike, so those of the first are counted and multiplied; the whole model is counted besides, so that a
part that is lost shows in the total.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.spec import ModelConfig, MoeConfig, Unsupported
from impls.analysis.bottleneck.sizes import config
from impls.common.decoder import Decoder
from impls.common.experts import Experts, route
from impls.common.rope import rope_table

Count = Callable[..., int]  # (module, *inputs) → FLOPs of the forward and backward pass, as an engine tells them
REAL = 50_000_000  # parameters that are made in memory


class Router(nn.Module):
    """Qwen3-MoE's router alone: tokens [T, h] → gates [T, k]."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.gate, self.k = experts.gate, experts.k

    def forward(self, tokens: Tensor) -> Tensor:
        return route(tokens, self.gate.weight, self.k)[2]


def made(model: ModelConfig, real: bool) -> Decoder:
    """The decoder, of shapes alone unless its work depends on numbers: experts receive the tokens that a router sends
    them, and some kernels exist only where there is data."""
    real = real or isinstance(model, MoeConfig)
    if not real:
        with torch.device("meta"):
            return Decoder(model)
    if model.parameters > REAL:
        raise Unsupported(f"this count needs real tensors; {model.parameters:,} parameters are made as shapes only")
    decoder, generator = Decoder(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(std=0.02, generator=generator)
    return decoder.cuda() if torch.cuda.is_available() else decoder


def unchanged(module: nn.Module) -> nn.Module:
    return module


def counted(
    sizes: Mapping[str, Any], count: Count, real: bool = False, wrap: Callable[[nn.Module], nn.Module] = unchanged
) -> dict[str, int]:
    """The FLOPs of each part and of the whole model. ``wrap`` makes what is trained of a layer, or of its part."""
    model = config(sizes)
    decoder = made(model, real)
    device, dtype = decoder.lm_head.weight.device, decoder.lm_head.weight.dtype
    b, s, layers = sizes["batch_size"], sizes["sequence_length"], sizes["num_hidden_layers"]

    def tokens(width: int) -> Tensor:
        return torch.ones(b, s, width, device=device, dtype=dtype, requires_grad=True)

    def of_layer(module: nn.Module, *inputs: Tensor) -> int:
        return count(wrap(module), *inputs)

    layer, cos_sin = decoder.model.layers[0], rope_table(s, model, device)
    attention, x = layer.self_attn, tokens(model.hidden_size)
    projections = sum(of_layer(each, x) for each in (attention.q_proj, attention.k_proj, attention.v_proj))
    projections += of_layer(attention.o_proj, tokens(model.num_attention_heads * model.head_dim))
    scores = of_layer(attention, x, *cos_sin) - projections
    router = of_layer(Router(layer.mlp), x.flatten(0, 1)) if isinstance(model, MoeConfig) else 0
    mlp = of_layer(layer.mlp, x) - router
    head, ids = count(decoder.lm_head, x), torch.zeros(b, s, device=device, dtype=torch.long)
    decoder.model.layers = nn.ModuleList(map(wrap, decoder.model.layers))
    return {
        "projections": layers * projections,
        "scores": layers * scores,
        "mlp": layers * mlp,
        "router": layers * router,
        "head": head,
        "total": count(decoder, ids, ids),
    }
