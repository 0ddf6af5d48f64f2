"""PyTorch's scaled_dot_product_attention over the whole cache, masked by each sequence's length, with exactly the named
back end. It knows no lengths and no pages: masked keys are read as well, and a cache must not hold NaN there."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.flash_decoding.problem import mask


def _build(
    backend: SDPBackend, workload: Workload, topology: Topology, queries: int, unified: bool, paged: bool
) -> Function:
    def decode(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        query, key, value = (inputs[name].transpose(1, 2) for name in ("query", "key", "value"))
        if query.is_cuda and backend is SDPBackend.FLASH_ATTENTION:
            raise Unsupported("SDPA's FLASH_ATTENTION on CUDA takes no mask, and so no lengths")
        if query.is_cuda and backend is SDPBackend.EFFICIENT_ATTENTION:
            # The kernel requires as many key heads as query heads: the copies are part of its cost.
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        visible = mask(inputs["lengths"], queries, key.shape[2])
        with sdpa_kernel(backend):
            output = scaled_dot_product_attention(
                query, key, value, attn_mask=visible, enable_gqa=key.shape[1] < query.shape[1]
            )
        return {"output": output.transpose(1, 2)}

    return decode


build_math = partial(_build, SDPBackend.MATH)
build_flash = partial(_build, SDPBackend.FLASH_ATTENTION)
build_efficient = partial(_build, SDPBackend.EFFICIENT_ATTENTION)
