"""A layer for engines that take a sequence of modules."""

from torch import Tensor, nn

from harness.spec import ModelConfig
from impls.common.decoder import Layer, rope_table


class Block(nn.Module):
    """Makes its rotary tables itself: between stages only activations travel. ``layer``: a new one by default."""

    def __init__(self, config: ModelConfig, layer: Layer | None = None) -> None:
        super().__init__()
        self.config, self.layer = config, layer or Layer(config)

    def forward(self, x: Tensor) -> Tensor:
        tables = rope_table(x.shape[1], self.config, x.device)
        return self.layer(x, *(table.to(x.dtype) for table in tables))
