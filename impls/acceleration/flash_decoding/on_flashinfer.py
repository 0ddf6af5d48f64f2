"""FlashInfer: a kernel for each sequence's own cache, and one for all on pages, which plans its splits on the host.

Neither takes an empty sequence, whose output is set to 0 here."""

from collections.abc import Mapping

import flashinfer
import torch
from torch import Tensor

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.flash_decoding.sizes import PAGE

WORKSPACE = 128 * 2**20  # bytes, as its documentation recommends


def build(workload: Workload, topology: Topology, queries: int, unified: bool, paged: bool) -> Function:
    if workload.dtype != "bf16":
        raise Unsupported(f"FlashInfer's decoding takes bf16 and fp16, not {workload.dtype}")
    return _paged() if paged else _single


def _single(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    output = torch.zeros_like(inputs["query"])
    for b, length in enumerate(inputs["lengths"].tolist()):
        if length:
            key, value = inputs["key"][b, :length], inputs["value"][b, :length]
            output[b, 0] = flashinfer.single_decode_with_kv_cache(inputs["query"][b, 0], key, value, kv_layout="NHD")
    return {"output": output}


def _paged() -> Function:
    space = torch.zeros(WORKSPACE, dtype=torch.uint8, device="cuda")
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(space, "NHD")

    def decode(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        query, (_, _, h_k, d) = inputs["query"], inputs["key"].shape
        lengths, some = inputs["lengths"], inputs["lengths"] > 0
        pages = (lengths[some] + PAGE - 1) // PAGE
        used = torch.arange(inputs["table"].shape[1], device=pages.device) < pages[:, None]
        wrapper.plan(
            torch.cat([pages.new_zeros(1), pages.cumsum(0)]).int(),
            inputs["table"][some][used],
            (lengths[some] - 1) % PAGE + 1,
            query.shape[2],
            h_k,
            d,
            PAGE,
            q_data_type=query.dtype,
        )
        output = torch.zeros_like(query)
        output[some, 0] = wrapper.run(query[some, 0], (inputs["key"], inputs["value"]))
        return {"output": output}

    return decode
