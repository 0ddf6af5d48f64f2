"""The adapted matrices and the parameters that adapt them, by PEFT's names."""

from collections.abc import Iterator
from math import prod, sqrt

from harness.spec import ModelConfig

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight"


def targets(model: ModelConfig) -> Iterator[tuple[str, tuple[int, int]]]:
    """Each adapted matrix of the model, as the name of its module and [out, in]."""
    for layer in range(model.num_hidden_layers):
        for name, shape in model.layer_shapes():
            module = name.removesuffix(".weight")
            if module.rpartition(".")[2] in TARGETS:
                yield f"model.layers.{layer}.{module}", (shape[0], shape[1])


def adapters(model: ModelConfig, rank: int, dora: bool = False) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The trained parameters, in the order of the forward pass: A [r, in], B [out, r], and DoRA's m [out]."""
    for module, (rows, columns) in targets(model):
        yield f"{module}.{A}", (rank, columns)
        yield f"{module}.{B}", (rows, rank)
        if dora:
            yield f"{module}.{MAGNITUDE}", (rows,)


def parameters(model: ModelConfig, rank: int, dora: bool = False) -> int:
    """φ, the number of trained parameters."""
    return sum(prod(shape) for _, shape in adapters(model, rank, dora))


def scale(rank: int, alpha: float, rslora: bool = False) -> float:
    """s, the factor of B A: α/r, or with rsLoRA α/√r."""
    return alpha / sqrt(rank) if rslora else alpha / rank
