"""PyTorch's scaled_dot_product_attention with exactly the named back end, or Unsupported.

Its ``is_causal`` is aligned at the top left. A bottom right has a bias of its own; windows and documents need a mask as
a tensor [s, t], which is made once and kept."""

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.flash_attention.rules import Rules
from impls.acceleration.flash_attention.tiles import documents

CUDA_DTYPES = {
    SDPBackend.MATH: (torch.float64, torch.float32, torch.bfloat16),
    SDPBackend.FLASH_ATTENTION: (torch.bfloat16,),
    SDPBackend.EFFICIENT_ATTENTION: (torch.float32, torch.bfloat16),
    SDPBackend.CUDNN_ATTENTION: (torch.bfloat16,),
}


def _build(backend: SDPBackend, workload: Workload, topology: Topology, **variant: Any) -> Function:
    rules, kept = Rules.of(**variant), {}
    if rules.softcap or variant.get("sinks"):
        raise Unsupported("scaled_dot_product_attention has neither capped scores nor sinks")

    def masks(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        query, s, t = inputs["query"], inputs["query"].shape[2], inputs["key"].shape[2]
        if not rules.window and "cu_seqlens" not in inputs:
            if rules.bottom_right and s != t:
                with warnings.catch_warnings():  # of NaN for the rows that see nothing, which parity judges
                    warnings.simplefilter("ignore")
                    return {"attn_mask": causal_lower_right(s, t)}
            return {"is_causal": rules.causal}
        if backend is SDPBackend.FLASH_ATTENTION and query.is_cuda:
            raise Unsupported("SDPA's FLASH_ATTENTION on CUDA takes no mask")
        if "mask" not in kept:
            kept["mask"] = _mask(rules, s, t, inputs.get("cu_seqlens"), query.device)
        return {"attn_mask": kept["mask"]}

    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        query, key, value = inputs["query"], inputs["key"], inputs["value"]
        if query.is_cuda and query.dtype not in CUDA_DTYPES[backend]:
            allowed = ", ".join(str(dtype) for dtype in CUDA_DTYPES[backend])
            raise Unsupported(f"SDPA's {backend.name} on CUDA takes {allowed}, not {query.dtype}")
        if backend is SDPBackend.EFFICIENT_ATTENTION:
            # The kernel requires as many key heads as query heads: the copies are part of its cost.
            group = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (key, value))
        grouped, rule = key.shape[1] < query.shape[1], masks(inputs)
        with sdpa_kernel(backend):
            return {"output": scaled_dot_product_attention(query, key, value, enable_gqa=grouped, **rule)}

    return attention


def _mask(rules: Rules, s: int, t: int, cu_seqlens: Tensor | None, device: torch.device) -> Tensor:
    """[s, t]: True where the query sees the key. Packed documents see only themselves."""
    if cu_seqlens is None:
        return rules.mask(s, t).seen(torch.arange(s, device=device), torch.arange(t, device=device))
    parts = [_mask(rules, at.stop - at.start, at.stop - at.start, None, device) for at in documents(cu_seqlens)]
    return torch.block_diag(*parts).bool()


build_math = partial(_build, SDPBackend.MATH)
build_flash = partial(_build, SDPBackend.FLASH_ATTENTION)
build_efficient = partial(_build, SDPBackend.EFFICIENT_ATTENTION)
build_cudnn = partial(_build, SDPBackend.CUDNN_ATTENTION)
