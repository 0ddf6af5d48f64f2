"""Transformers' DeepseekV3Attention: the training form in one process."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from harness.spec import Topology, Unsupported, Workload
from impls.acceleration.latent_attention.problem import EPS, THETA
from impls.acceleration.latent_attention.sizes import sizes
from impls.common.mesh import device
from impls.common.weights import TORCH_DTYPES

NAMES = {
    "q_down": "q_a_proj.weight",
    "q_norm": "q_a_layernorm.weight",
    "q_up": "q_b_proj.weight",
    "kv_down": "kv_a_proj_with_mqa.weight",
    "kv_norm": "kv_a_layernorm.weight",
    "kv_up": "kv_b_proj.weight",
    "out": "o_proj.weight",
}


class Attention:
    def __init__(self, workload: Workload, topology: Topology, absorbed: bool) -> None:
        if topology.world_size > 1:
            raise Unsupported("Transformers' DeepseekV3Attention runs in one process")
        if workload.dtype == "fp64":
            raise Unsupported("Transformers' DeepseekV3RMSNorm takes its mean in float32")
        model = workload.model
        heads, r_q, r, d, d_r = sizes(model)
        config = DeepseekV3Config(
            hidden_size=model.hidden_size,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            q_lora_rank=r_q,
            kv_lora_rank=r,
            qk_nope_head_dim=d,
            qk_rope_head_dim=d_r,
            v_head_dim=d,
            rms_norm_eps=EPS,
            rope_parameters={"rope_type": "default", "rope_theta": THETA},
            max_position_embeddings=workload.sequence_length,
            attn_implementation="sdpa",
        )
        self.module = DeepseekV3Attention(config, 0).to(device(), TORCH_DTYPES[workload.dtype])
        self.rotary = DeepseekV3RotaryEmbedding(config).to(device())

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = inputs["x"]
        positions = self.rotary(x, torch.arange(x.shape[1], device=x.device)[None])
        weights = {NAMES[name]: tensor for name, tensor in inputs.items() if name in NAMES}
        output, _ = functional_call(self.module, weights, (x, positions, None))
        return {"output": output}


def build(workload: Workload, topology: Topology, absorbed: bool) -> Attention:
    return Attention(workload, topology, absorbed)
