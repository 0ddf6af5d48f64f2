"""PEFT's LoraParallelLinear on Megatron-Core's ColumnParallelLinear and RowParallelLinear, which LoraConfig asks for by
``megatron_config``. Its adapters are Megatron's parallel layers too, so the activations of rank r are summed.

PEFT 0.21 cannot put them in: its dispatch_megatron raises a KeyError for "fan_in_fan_out", which it is no longer given,
and so does their initialisation for "lora_bias", which they lack. So they are made here, with the arguments that it
would give and without an initialisation, since every call brings the adapters."""

from collections.abc import Mapping

import peft
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from peft.tuners.lora.tp_layer import LoraParallelLinear
from torch import Tensor, nn
from torch.func import functional_call

from harness.spec import Function, Topology, Workload
from impls.common.weights import TORCH_DTYPES
from impls.engines.megatron.start import start
from impls.finetuning.lora_parallel.spread import Block


class Layers(nn.Module):
    """x [b, s, h] → [b, s, h]."""

    def __init__(self, config: TransformerConfig, h: int, f: int) -> None:
        super().__init__()
        common = {"config": config, "init_method": nn.init.zeros_, "bias": False}
        self.up = ColumnParallelLinear(h, f, gather_output=False, **common)
        self.down = RowParallelLinear(f, h, input_is_parallel=True, skip_bias_add=False, **common)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down(F.silu(self.up(x)[0]))[0]
        return output


class Adapted(Block):
    fallback = "PEFT's dispatcher, which fails, is passed over"

    def __init__(self, workload: Workload, topology: Topology, rank: int, alpha: float) -> None:
        super().__init__(topology)
        start(topology)
        model = workload.model
        config = TransformerConfig(
            num_layers=1,
            hidden_size=model.hidden_size,
            num_attention_heads=topology.tp,
            tensor_model_parallel_size=topology.tp,
            params_dtype=TORCH_DTYPES[workload.dtype],
            use_cpu_initialization=True,
            perform_initialization=False,
            gradient_accumulation_fusion=False,  # an Apex kernel
        )
        self.configuration = f"LoraConfig(r={rank}, lora_alpha={alpha}, megatron_config=…)"
        settings = {"r": rank, "lora_alpha": alpha, "init_lora_weights": False}
        lora = peft.LoraConfig(**settings, megatron_config=config, megatron_core="megatron.core")
        self.model = Layers(config, model.hidden_size, model.intermediate_size)
        for name in ("up", "down"):
            base, more = getattr(self.model, name), {"r": rank, "lora_alpha": alpha, "megatron_config": config}
            layer = LoraParallelLinear(base, "default", config=lora, backend=tensor_parallel, **more)
            setattr(self.model, name, layer)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {}
        for name in ("up", "down"):
            given[f"{name}.base_layer.weight"] = inputs[name]
            for side in "AB":
                given[f"{name}.lora_{side}.default.weight"] = inputs[f"{side}_{name}"]
        return {"output": functional_call(self.model, given, (inputs["x"],))}


def build(workload: Workload, topology: Topology, rank: int, alpha: float, low: bool) -> Function:
    return Adapted(workload, topology, rank, alpha)
