"""Stages of a pipeline: consecutive layers of the decoder, under their canonical names."""

from torch import Tensor, nn

from harness.spec import ModelConfig
from impls.common.decoder import Layer, RMSNorm, wide
from impls.common.rope import rope_table
from impls.common.routers import without_router_losses


class Block(nn.Module):
    """A layer for engines that take a sequence of modules. It computes its own rotary tables, since only activations
    travel between stages. ``layer``: one that exists, or the place in the model of a new one."""

    def __init__(self, config: ModelConfig, layer: nn.Module | int) -> None:
        super().__init__()
        without_router_losses(config, "a sequence of modules has one loss, that of its end; routers have their own")
        self.config, self.layer = config, Layer(config, layer) if isinstance(layer, int) else layer

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] → [b, s, h]"""
        tables = rope_table(x.shape[1], self.config, x.device)
        out: Tensor = self.layer(x, *(table.to(x.dtype) for table in tables))
        return out


class Part(nn.Module):
    """The modules of a stage below ``model.``."""

    def __init__(self, config: ModelConfig, layers: range, first: bool, last: bool) -> None:
        super().__init__()
        if first:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleDict({str(index): Layer(config, index) for index in layers})
        if last:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Stage(nn.Module):
    """Layers ``layers`` of the model; the first stage has the embedding, the last one norm and head.

    Token ids [b, s] (first stage) or activations [b, s, h] in; activations [b, s, h] out, or of the last stage logits
    [b, s, V].
    """

    positions: Tensor | None = None  # in the sequence, if a rank does not have all of them

    def __init__(self, config: ModelConfig, layers: range, first: bool, last: bool) -> None:
        super().__init__()
        self.config, self.first, self.last = config, first, last
        self.model = Part(config, layers, first, last)
        if last:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        body = self.model
        if self.first:
            x = body.embed_tokens(x)
        cos, sin = (table.to(x.dtype) for table in rope_table(x.shape[1], self.config, x.device, self.positions))
        for layer in body.layers.values():
            x = layer(x, cos, sin)
        return wide(self.lm_head(body.norm(x))) if self.last else x
