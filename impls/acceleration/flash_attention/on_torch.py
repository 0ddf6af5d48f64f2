"""PyTorch's scaled_dot_product_attention with exactly the named back end, or Unsupported."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from harness.spec import Function, Topology, Unsupported, Workload

CUDA_DTYPES = {
    SDPBackend.MATH: (torch.float64, torch.float32, torch.bfloat16),
    SDPBackend.FLASH_ATTENTION: (torch.bfloat16,),
    SDPBackend.EFFICIENT_ATTENTION: (torch.float32, torch.bfloat16),
    SDPBackend.CUDNN_ATTENTION: (torch.bfloat16,),
}


def _build(backend: SDPBackend, workload: Workload, topology: Topology, causal: bool) -> Function:
    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        query, key, value = inputs["query"], inputs["key"], inputs["value"]
        if query.is_cuda and query.dtype not in CUDA_DTYPES[backend]:
            allowed = ", ".join(str(dtype) for dtype in CUDA_DTYPES[backend])
            raise Unsupported(f"SDPA's {backend.name} on CUDA takes {allowed}, not {query.dtype}")
        if backend is SDPBackend.EFFICIENT_ATTENTION:
            # The kernel requires as many key heads as query heads: the copies are part of its cost.
            group = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (key, value))
        with sdpa_kernel(backend):
            output = scaled_dot_product_attention(
                query, key, value, is_causal=causal, enable_gqa=key.shape[1] < query.shape[1]
            )
        return {"output": output}

    return attention


build_math = partial(_build, SDPBackend.MATH)
build_flash = partial(_build, SDPBackend.FLASH_ATTENTION)
build_efficient = partial(_build, SDPBackend.EFFICIENT_ATTENTION)
build_cudnn = partial(_build, SDPBackend.CUDNN_ATTENTION)
