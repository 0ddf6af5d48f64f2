"""PEFT's settings of a variant."""

from impls.finetuning.lora.shapes import TARGETS


def settings(
    rank: int, alpha: float, rslora: bool = False, dora: bool = False, ratio: float = 1.0
) -> dict[str, object]:
    """The arguments of LoraConfig; ``ratio`` is the optimizer's affair."""
    return {
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "use_dora": dora,
        "target_modules": list(TARGETS),
        "lora_dropout": 0.0,
    }
