"""Megatron-Core's MLASelfAttention (local specification: no Transformer Engine).

It also cuts the down projections by columns, and gathers their outputs. Every rank takes its own part of a gather's
gradient. This is right for the latents, whose gradients a column-parallel product has summed, but wrong for the rotary
key, which all heads use directly: kv_down's and x's gradients lack the other ranks' heads.
"""

from collections.abc import Mapping
from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import MLATransformerConfig, multi_latent_attention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.spec_utils import build_module
from torch import Tensor
from torch.func import functional_call

from harness.spec import Topology, Unsupported, Workload
from impls.acceleration.latent_attention.problem import EPS, THETA
from impls.acceleration.latent_attention.sizes import sizes
from impls.acceleration.latent_attention.spread import CUT, Heads
from impls.common.weights import TORCH_DTYPES
from impls.engines.megatron.start import start

NAMES = {
    "q_down": "linear_q_down_proj.weight",
    "q_norm": "q_layernorm.weight",
    "q_up": "linear_q_up_proj.weight",
    "kv_down": "linear_kv_down_proj.weight",
    "kv_norm": "kv_layernorm.weight",
    "kv_up": "linear_kv_up_proj.weight",
    "out": "linear_proj.weight",
}


class CoreAttention(DotProductAttention):
    """MLASelfAttention passes the widths of keys and values, which only Transformer Engine's attention accepts."""

    def __init__(self, *arguments: Any, k_channels: int = 0, v_channels: int = 0, **options: Any) -> None:
        super().__init__(*arguments, **options)


class Attention(Heads):
    fallback = "Megatron-Core's own DotProductAttention is called without k_channels and v_channels"
    cut = CUT | {"q_down": 0, "kv_down": 0}

    def __init__(self, workload: Workload, topology: Topology, absorbed: bool) -> None:
        super().__init__(topology)
        if workload.dtype == "fp64":
            raise Unsupported("Megatron-Core's attention computes its softmax in float32")
        start(topology)
        if not isinstance(multi_latent_attention.TELinear, type):
            multi_latent_attention.HAVE_TE = False  # without Transformer Engine it is a placeholder, but true
        model = workload.model
        heads, r_q, r, d, d_r = sizes(model)
        config = MLATransformerConfig(
            num_layers=1,
            hidden_size=model.hidden_size,
            num_attention_heads=heads,
            kv_channels=d,
            q_lora_rank=r_q,
            kv_lora_rank=r,
            qk_head_dim=d,
            qk_pos_emb_head_dim=d_r,
            v_head_dim=d,
            rope_type="rope",
            rotary_base=THETA,
            rotary_scaling_factor=1.0,
            layernorm_epsilon=EPS,
            attention_dropout=0.0,
            tensor_model_parallel_size=topology.tp,
            add_bias_linear=False,
            params_dtype=TORCH_DTYPES[workload.dtype],
            bf16=workload.dtype == "bf16",
            fp16=workload.dtype == "fp16",
            use_cpu_initialization=True,
            perform_initialization=False,
            apply_rope_fusion=False,  # a Triton kernel
            masked_softmax_fusion=False,  # a CUDA kernel
            gradient_accumulation_fusion=False,  # an Apex kernel
            persist_layer_norm=False,
        )
        layer = get_gpt_layer_local_spec(multi_latent_attention=True, qk_layernorm=True, normalization="RMSNorm")
        attention = layer.submodules.self_attention
        attention.submodules.core_attention = CoreAttention
        self.module = build_module(attention, config=config, layer_number=1)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = {NAMES[name]: tensor for name, tensor in inputs.items() if name in NAMES}
        output, _ = functional_call(self.module, weights, (inputs["x"].transpose(0, 1), None))
        return {"output": output.transpose(0, 1)}


def build(workload: Workload, topology: Topology, absorbed: bool) -> Attention:
    return Attention(workload, topology, absorbed)
