"""Transformers' eager attention: gpt-oss's with sinks, Gemma 2's with capped scores. Both are naive attention."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from harness.spec import Function, Topology, Workload
from impls.acceleration.flash_attention.rules import Rules


def build(workload: Workload, topology: Topology, **variant: Any) -> Function:
    model, rules, kept = workload.model, Rules.of(**variant), {}
    layer = SimpleNamespace(
        num_key_value_groups=model.num_attention_heads // model.num_key_value_heads, training=True, sinks=None
    )

    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        query, key, value = (inputs[name] for name in ("query", "key", "value"))
        if "mask" not in kept:
            kept["mask"] = _bias(rules, query, key)
        scaling = query.shape[-1] ** -0.5
        if "sinks" in inputs:
            layer.sinks = inputs["sinks"]
            forward, cap = modeling_gpt_oss.eager_attention_forward, {}
        else:
            forward, cap = modeling_gemma2.eager_attention_forward, {"softcap": rules.softcap}
        output, _ = forward(layer, query, key, value, kept["mask"], scaling=scaling, dropout=0.0, **cap)
        layer.sinks = None  # the layer must not keep the inputs
        return {"output": output.transpose(1, 2)}

    return attention


def _bias(rules: Rules, query: Tensor, key: Tensor) -> Tensor:
    """What is added to the scores, [1, 1, s, t], as transformers.masking_utils makes it for eager attention: the
    precision's lowest number where the query does not see the key."""
    s, t = (torch.arange(x.shape[2], device=x.device) for x in (query, key))
    unseen = ~rules.mask(len(s), len(t)).seen(s, t)
    lowest = torch.finfo(query.dtype).min
    return torch.zeros(unseen.shape, dtype=query.dtype, device=query.device).masked_fill(unseen, lowest)[None, None]
