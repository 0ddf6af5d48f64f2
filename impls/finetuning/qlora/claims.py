"""QLoRA's published memory, by the arithmetic of the model that it names and by this run's states."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.spec import Measurement, ModelConfig, Topology, assessed
from harness.spec.named import NAMED
from impls.finetuning.lora.shapes import parameters, targets
from impls.finetuning.qlora.grid import BLOCKS
from impls.finetuning.qlora.laws import layers, states

Records = Sequence[Mapping[str, Any]]
# LLaMA 65B (Touvron et al. 2023, table 2).
LLAMA = ModelConfig(
    vocab_size=32000,
    hidden_size=8192,
    intermediate_size=22016,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=64,
    head_dim=128,
)
RANK = 64  # appendix B.2
GIGA = 1e9


def llama(records: Records) -> Measurement:
    """65 B parameters: codes and scales of the layers, the rest in 2 bytes; A and B with gradients in 2 bytes and two
    moments in 4."""
    elements = sum(rows * columns for _, (rows, columns) in targets(LLAMA))
    base, other = sum(layers(LLAMA, True)), 2 * (LLAMA.parameters - elements)
    trained = parameters(LLAMA, RANK) * (2 + 2 + 8)
    inputs = LLAMA.num_hidden_layers * 512 * LLAMA.hidden_size * 2  # of each layer, a sequence of 512 tokens
    total = (base + other + trained + inputs) / GIGA
    arithmetic = (
        f"{elements / GIGA:.1f} B · {8 * base / elements:.3f} bits = {base / GIGA:.1f} GB, others in 2 bytes "
        f"{other / GIGA:.1f} GB, adapters of rank {RANK} with gradients and moments {trained / GIGA:.1f} GB, "
        f"checkpointed inputs {inputs / GIGA:.1f} GB: {total:.1f} GB; in 16 bits with Adam 12 bytes a parameter are "
        f"{12 * LLAMA.parameters / GIGA:,.0f} GB"
    )
    return assessed("qlora_65b", "formula only", arithmetic, arithmetic, value=total, law=48.0, unit="GB")


def bits(records: Records) -> Measurement:
    """The reference's states without those of its other parameters, over the elements of the base."""
    found, arithmetic = {}, "4 + 8/64 + 32/(64 · 256) = 4.127; 4 + 32/64 = 4.5"
    for record in records:
        variant, work = record["variant"], {**NAMED, BLOCKS.name: BLOCKS}.get(record["workload"])
        asked = (record["measure"], record["quantity"], record["engine"]) == ("memory", "states", "reference")
        if not (asked and work and record["value"] and variant in ("qlora", "qlora_single")):
            continue
        work, double = work.with_(dtype=record["dtype"]), variant == "qlora"
        elements = sum(rows * columns for _, (rows, columns) in targets(work.model))
        others = states(work, Topology(), rank=4, double=double) - sum(layers(work.model, double))
        found[variant] = min(8 * (record["value"] - others) / elements, found.get(variant, math.inf))
    if found.keys() < {"qlora", "qlora_single"}:
        return assessed(
            "qlora_measured_bits", "formula only", f"{arithmetic}; this run did not measure both", arithmetic
        )
    double, single = found["qlora"], found["qlora_single"]
    reason = f"the reference holds {single:.3f} bits a parameter, {double:.3f} with double quantisation"
    status = "reproduced" if abs(single - double - 0.37) < 0.04 else "contradicted"
    return assessed("qlora_measured_bits", status, reason, arithmetic, value=double, law=4.127, unit="bits")
