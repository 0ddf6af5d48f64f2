"""LoRA's published shares, by the arithmetic of the models that they name and by this run's states."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from harness.spec import Measurement, ModelConfig, assessed
from harness.spec.named import NAMED
from impls.finetuning.lora.shapes import parameters

Records = Sequence[Mapping[str, Any]]
WIDTH, LAYERS, GPT3 = 12288, 96, 175e9  # of GPT-3 175B (Brown et al. 2020, table 2.1)


def share(records: Records) -> Measurement:
    """φ/Ψ of the named work at its own size and, since it falls with the width, at that of a model of billions."""
    wide = ModelConfig(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
    shares = {rank: parameters(wide, rank) / wide.parameters for rank in (4, 8, 16, 64)}
    tiny = NAMED["tiny"].model
    arithmetic = ", ".join(f"r = {rank}: {part:.2%}" for rank, part in shares.items())
    reason = (
        f"Qwen3-8B with all matrices of its layers adapted: {arithmetic}; this run's small model at r = 4: "
        f"{parameters(tiny, 4) / tiny.parameters:.1%}. The share is r (d + k)/(d k): it holds below r = 32 there"
    )
    return assessed("lora_share", "formula only", reason, arithmetic, value=shares[16], law=0.01, direction="lower")


def gpt3(records: Records) -> Measurement:
    """Trained parameters: r = 4 on W_q and W_v, 2 · L · 2 · d · r. Memory: states with AdamW, this run's beside those
    of the whole model."""
    trained = 2 * LAYERS * 2 * WIDTH * 4
    arithmetic = (
        f"2 · 96 · 2 · 12288 · 4 = {trained / 1e6:.1f} M, 175 B / {trained / 1e6:.1f} M = {GPT3 / trained:,.0f}"
    )
    held = [
        (record["value"], NAMED[record["workload"]].model.parameters)
        for record in records
        if (record["measure"], record["quantity"]) == ("memory", "states")
        and record["engine"] == "reference"
        and (record["variant"], record["optimizer"], record["dtype"]) == ("lora", "adamw", "bf16")
        and record["value"]
        and record["workload"] in NAMED
    ]
    reason = f"{arithmetic}; in mixed precision with Adam 16 bytes a parameter become 2, an eighth; a third needs "
    reason += "activations and fragments too (1.2 TB became 350 GB, which is the weights in 2 bytes alone)"
    if held:
        value, parameters_ = held[0]
        reason += f"; here {value / parameters_:.2f} bytes a parameter of the model, of 16"
    return assessed("lora_gpt3", "formula only", reason, arithmetic, value=GPT3 / trained, law=1e4)


def matrices(model: ModelConfig) -> int:
    """Elements of all matrices of the layers."""
    return model.num_hidden_layers * sum(prod(shape) for _, shape in model.layer_shapes() if len(shape) == 2)
