"""The frozen base below adapters: matrices, and biases where the model has them."""

from collections.abc import Mapping

from torch import Tensor


def biased(y: Tensor, b: Tensor | None) -> Tensor:
    """[..., d] + [d]: a frozen bias is added last, and no adapter's gain scales it."""
    return y if b is None else y + b


def frozen(base: Mapping[str, tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
    """Module → its weight and bias, as parameters by name."""
    found = {f"{name}.weight": weight for name, (weight, _) in base.items()}
    return found | {f"{name}.bias": bias for name, (_, bias) in base.items() if bias is not None}
