"""Transformer Engine's GroupedLinear, as Megatron-Core's TEGroupedMLP uses it.

Its recipe of FP8 blocks quantises inside, so it does not take quantised numbers that are given."""

from collections.abc import Mapping

from torch import Tensor
from torch.func import functional_call
from transformer_engine.pytorch import GroupedLinear

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.grouped_gemm.sizes import sizes
from impls.common.weights import TORCH_DTYPES


def build(workload: Workload, topology: Topology, layout: str, scaled: bool) -> Function:
    if workload.dtype == "fp64":
        raise Unsupported("Transformer Engine takes float32, bfloat16 and float16, not float64")
    size = sizes(workload, layout)
    linear = GroupedLinear(
        len(size.rows), size.k, size.n, bias=False, params_dtype=TORCH_DTYPES[workload.dtype], device="meta"
    )

    def product(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, splits = inputs["x"], inputs["sizes"].tolist()
        weights = {f"weight{g}": weight for g, weight in enumerate(inputs["w"].unbind())}
        y = functional_call(linear, weights, (x.flatten(0, -2), splits))
        return {"y": y.view(*x.shape[:-1], size.n)}

    return product
