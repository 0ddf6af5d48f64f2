"""torchao: Float8Linear with the recipes tensorwise and rowwise, and MXFP8Linear with either rule for scales.

Codes and scales are not kept by torchao; its own casts are called once more to show them. On a CPU the rows and the MX
blocks are emulated, as torchao calls its products of decoded operands; the products of whole tensors are PyTorch's."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():  # about kernels that were not compiled for this PyTorch, and about its own deprecations
    warnings.simplefilter("ignore")
    logging.getLogger("torchao").setLevel(logging.ERROR)
    from torchao.float8.config import CastConfig, Float8LinearConfig
    from torchao.float8.float8_linear import Float8Linear
    from torchao.float8.float8_scaling_utils import get_maybe_axiswise_dim, hp_tensor_to_float8_dynamic
    from torchao.prototype.moe_training.mxfp8_linear import MXFP8Linear
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.fp8.problem import DTYPES, activation

MODES = {"mx": ScaleCalculationMode.FLOOR, "mx_ceil": ScaleCalculationMode.RCEIL}


def _function(linear: Any, show: Any) -> Function:
    """``linear``: a module whose weight is replaced; ``show``: a matrix's codes and scales."""

    def call(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, w = activation(inputs["x"]), inputs["weight"]
        y = torch.func.functional_call(linear, {"weight": w}, (x,))
        shown = {"x": show(x.detach().flatten(0, -2)), "weight": show(w.detach())}
        outputs = {f"{name}_codes": codes.view(torch.uint8) for name, (codes, _) in shown.items()}
        return {"output": y, **outputs, **{f"{name}_scales": scales for name, (_, scales) in shown.items()}}

    return call


def build(workload: Workload, topology: Topology, scaling: str, gradients: str) -> Function:
    model, cuda = workload.model, torch.cuda.is_available()
    sizes = model.hidden_size, model.intermediate_size
    if scaling in MODES:
        if odd := [size for size in (workload.tokens, *sizes) if size % 32]:
            raise Unsupported(f"MXTensor takes multiples of its block of 32, not {', '.join(map(str, odd))}")
        able = cuda and torch.cuda.get_device_capability() >= (10, 0)
        kernel = KernelPreference.AUTO if able else KernelPreference.EMULATED
        module = MXFP8Linear(
            *sizes, bias=False, device="meta", kernel_preference=kernel, scale_calculation_mode=MODES[scaling]
        )

        def show(x: Tensor) -> tuple[Tensor, Tensor]:
            found = MXTensor.to_mx(x, torch.float8_e4m3fn, 32, MODES[scaling], KernelPreference.EMULATED)
            return found.qdata, 1 / found.scale.float()

        return _function(module, show)

    if scaling == "rows":
        config = Float8LinearConfig.from_recipe_name("rowwise")
    else:
        config = Float8LinearConfig(cast_config_grad_output=CastConfig(target_dtype=DTYPES[gradients]))
    if cuda and (odd := [size for size in (workload.tokens, *sizes) if size % 16]):
        raise Unsupported(f"_scaled_mm on GPUs takes multiples of 16, not {', '.join(map(str, odd))}")
    linear = Float8Linear(*sizes, bias=False, device="meta", config=config)
    cast = config.cast_config_input

    def codes(x: Tensor) -> tuple[Tensor, Tensor]:
        found = hp_tensor_to_float8_dynamic(
            x,
            cast.target_dtype,
            linear.linear_mm_config,
            scaling_granularity=cast.scaling_granularity,
            axiswise_dim=get_maybe_axiswise_dim(-1, cast.scaling_granularity),
            round_scales_to_power_of_2=config.round_scales_to_power_of_2,
        )
        return found._data, found._scale.view(-1, 1)

    return _function(linear, codes)
