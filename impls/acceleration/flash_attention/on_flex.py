"""PyTorch's FlexAttention, compiled: the mask is a function of positions, turned into the list of tiles to compute, and
a function changes the scores. Sinks are outside: ``output · σ(L − sink)`` is what one more key without a value leaves.

There is no backward pass on the CPU, hence the card's requirement of CUDA."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.flash_attention.rules import Rules

Positions = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # batch, head, query and key → whether it is seen


def _seen(rules: Rules, shift: int) -> Positions:
    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        found = key <= query + shift
        return found & (key > query + shift - rules.window) if rules.window else found

    return seen


def _same_document(seen: Positions, cu_seqlens: Tensor, tokens: int) -> Positions:
    places = torch.arange(tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    document = torch.searchsorted(cu_seqlens, places, right=True)  # [tokens]

    def both(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen(batch, head, query, key) & (document[query] == document[key])

    return both


def build(workload: Workload, topology: Topology, **variant: Any) -> Function:
    if workload.dtype == "fp64":
        raise Unsupported("FlexAttention's kernels take fp32 and bf16, not fp64")
    compiled, rules = torch.compile(flex_attention, dynamic=False), Rules.of(**variant)

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rules.capped(score)

    @cache
    def mask(s: int, t: int, device: torch.device) -> BlockMask:
        return create_block_mask(_seen(rules, rules.mask(s, t).shift), None, None, s, t, device=str(device))

    def tiles(inputs: Mapping[str, Tensor]) -> BlockMask | None:
        (s, t), device = (inputs[name].shape[2] for name in ("query", "key")), inputs["query"].device
        if "cu_seqlens" in inputs:
            alone = _same_document(_seen(rules, 0), inputs["cu_seqlens"], s)
            return create_block_mask(alone, None, None, s, s, device=str(device))
        return mask(s, t, device) if rules.causal or rules.window else None

    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        query, key, value = inputs["query"], inputs["key"], inputs["value"]
        options = {"block_mask": tiles(inputs), "enable_gqa": key.shape[1] < query.shape[1]}
        options["score_mod"] = capped if rules.softcap else None
        if "sinks" not in inputs:
            return {"output": compiled(query, key, value, **options)}
        output, more = compiled(query, key, value, **options, return_aux=AuxRequest(lse=True))
        share = (more.lse - inputs["sinks"].float()[:, None]).sigmoid()  # [b, h, s]: of exp L in exp L + exp sink
        return {"output": output * share[..., None].to(output.dtype)}

    return attention
