"""Transformers' Qwen3, Qwen2 or Llama, built beside ours with the same weights."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Batch, ModelConfig, MoeConfig, RopeScaling, Workload
from harness.spec.config import FAMILIES, described
from impls.common.decoder import Decoder
from impls.common.weights import initial

TIED_GQA = ModelConfig(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
QWEN2 = replace(TIED_GQA, qk_norm=False, qkv_bias=True)
LLAMA = replace(TIED_GQA, qk_norm=False, tie_word_embeddings=False)
# A model for each feature. Lengths are such that RoPE's scalings and the windows matter within a few tokens.
FEATURES = {
    "qwen2": QWEN2,
    "qwen2_sliding": replace(QWEN2, sliding_window=5, sliding_layers=(1,)),
    "qwen2_yarn": replace(QWEN2, rope_scaling=RopeScaling("yarn", 4.0, 8)),
    "llama": LLAMA,
    "llama_biases": replace(LLAMA, qkv_bias=True, o_bias=True, mlp_bias=True),
    "llama3": replace(LLAMA, rope_scaling=RopeScaling("llama3", 8.0, 16, low_freq_factor=1.0, high_freq_factor=4.0)),
    "llama_linear": replace(LLAMA, rope_scaling=RopeScaling("linear", 3.0)),
    "qwen3_biases": replace(TIED_GQA, qkv_bias=True, o_bias=True),
    "qwen3_yarn": replace(
        TIED_GQA, rope_scaling=RopeScaling("yarn", 4.0, 16, attention_factor=1.25, beta_fast=4.0, truncate=False)
    ),
    "qwen3_sliding": replace(TIED_GQA, sliding_window=7, sliding_layers=(0,)),
}


def weights(config: ModelConfig) -> dict[str, Tensor]:
    return dict(initial(Workload(model=config)))


def ours(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Decoder:
    model = Decoder(config)
    missing, unexpected = model.load_state_dict(weights(config), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"] if config.tie_word_embeddings else [], [])
    return model.to(dtype)


def theirs(config: ModelConfig, dtype: torch.dtype = torch.float32, attention: str = "eager") -> Any:
    import transformers
    from transformers import AutoConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

    if isinstance(config, MoeConfig):
        fields = asdict(config)
        rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
        unknown = ("rope_scaling", "sliding_window", "sliding_layers")
        options = {"rope_parameters": rope, "attn_implementation": attention}
        options |= {name: value for name, value in fields.items() if name not in unknown}
        given = Qwen3MoeConfig(**options, norm_topk_prob=True, experts_implementation="eager")
        model = Qwen3MoeForCausalLM(given)
    else:
        fields = described(config)
        kind = FAMILIES[fields["model_type"]].architecture
        model = getattr(transformers, kind)(AutoConfig.for_model(**fields, attn_implementation=attention))
    missing, unexpected = model.load_state_dict(weights(config), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"] if config.tie_word_embeddings else [], [])
    return model.to(dtype).eval()


def _routed(x: Tensor, router: Any) -> tuple[Tensor, Tensor, Tensor]:
    logits = F.linear(x.reshape(-1, router.hidden_dim), router.weight)
    gates, experts = logits.softmax(-1).topk(router.top_k)
    return logits, gates / gates.sum(-1, keepdim=True), experts


def oracle(config: ModelConfig) -> Any:
    """Transformers' model in float64 throughout."""
    return exact(theirs(config, torch.float64, attention="sdpa"))


def exact(model: Any) -> Any:
    """A model of Transformers with everything in float64: its own norm, router and loss go through float32."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm, Qwen3MoeTopKRouter

    model.loss_function = lambda logits, labels, *_, **__: F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    for module in model.modules():
        if isinstance(module, Qwen3MoeTopKRouter):
            module.forward = lambda x, router=module: _routed(x, router)
        if isinstance(module, LlamaRMSNorm | Qwen2RMSNorm | Qwen3RMSNorm | Qwen3MoeRMSNorm):
            module.forward = lambda x, norm=module: (
                norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
            )
    return model


def figures(model: Any, batch: Batch) -> dict[str, Tensor]:
    """Logits, loss and each parameter's gradient of either model in float64."""
    model.zero_grad()
    if isinstance(model, Decoder):
        logits, loss = model(batch.inputs), model(batch.inputs, batch.labels)
    else:
        out = model(batch.inputs, labels=batch.labels, shift_labels=batch.labels)
        logits, loss = out.logits, out.loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {name: t.detach().double() for name, t in {"logits": logits, "loss": loss, **gradients}.items()}


def errors(got: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative L2 error of the logits, of the loss, and of the worst gradient."""
    assert got.keys() == true.keys()
    relative = {name: float((got[name] - true[name]).norm() / true[name].norm()) for name in true}
    return {"logits": relative.pop("logits"), "loss": relative.pop("loss"), "gradients": max(relative.values())}


def floor(got: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> dict[str, float]:
    """``errors``, but with the largest loss error that the worst logit's error can cause: chance can make it 0."""
    most = 2 * float((got["logits"] - true["logits"]).abs().max() / true["loss"])
    return {**errors(got, true), "loss": most}
