"""ring-flash-attn's rings: contiguous, striped and zig-zag, and zig-zag for packed documents. It is built around
flash-attn, which has a substitute kernel on the CPU."""

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from types import ModuleType

from torch import Tensor

from harness.spec import Topology, Unsupported, Workload
from impls.parallelism.context_parallel.flash_attn_on_cpu import NARROW, stand_in
from impls.parallelism.context_parallel.spread import SequenceFirst

# Imports its modules without its __init__, which patches Transformers and uses a name that Transformers 5 removed.
_FOUND = find_spec("ring_flash_attn")
if _FOUND:
    sys.modules["ring_flash_attn"] = ModuleType("ring_flash_attn")
    sys.modules["ring_flash_attn"].__path__ = _FOUND.submodule_search_locations

with stand_in() as FALLBACK:
    from ring_flash_attn.ring_flash_attn import ring_flash_attn_func
    from ring_flash_attn.stripe_flash_attn import stripe_flash_attn_func
    from ring_flash_attn.zigzag_ring_flash_attn import zigzag_ring_flash_attn_func
    from ring_flash_attn.zigzag_ring_flash_attn_varlen import zigzag_ring_flash_attn_varlen_func

FUNCTIONS = {
    "contiguous": ring_flash_attn_func,
    "striped": stripe_flash_attn_func,
    "zigzag": zigzag_ring_flash_attn_func,
}


class Ring(SequenceFirst):
    fallback = FALLBACK

    def __init__(self, workload: Workload, topology: Topology, layout: str, group: int, packed: bool) -> None:
        super().__init__(workload, topology, layout, group, packed)
        if workload.dtype != "bf16":
            raise Unsupported(f"flash-attn takes bf16, and these rings are wrong in {workload.dtype}: {NARROW}")
        self.rings = self.mesh().get_group("ring")

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = (inputs[name].transpose(1, 2) for name in ("query", "key", "value"))
        if not self.packed:
            return {"output": FUNCTIONS[self.layout](*tensors, causal=True, group=self.rings).transpose(1, 2)}
        starts = inputs["cu_seqlens"].int()
        tokens = (x.squeeze(0) for x in tensors)
        output = zigzag_ring_flash_attn_varlen_func(*tokens, starts, max(self.lengths), causal=True, group=self.rings)
        return {"output": output.unsqueeze(0).transpose(1, 2)}


def build(
    workload: Workload, topology: Topology, layout: str = "contiguous", group: int = 1, packed: bool = False
) -> Ring:
    return Ring(workload, topology, layout, group, packed)
