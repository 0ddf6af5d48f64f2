"""Transformers' Qwen3, built beside ours with the same weights."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Batch, ModelConfig, MoeConfig, Workload
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


def weights(config: ModelConfig) -> dict[str, Tensor]:
    return dict(initial(Workload(model=config)))


def ours(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Decoder:
    model = Decoder(config)
    missing, unexpected = model.load_state_dict(weights(config), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"] if config.tie_word_embeddings else [], [])
    return model.to(dtype)


def theirs(config: ModelConfig, dtype: torch.dtype = torch.float32, attention: str = "eager") -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    fields = asdict(config)
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    options = {"rope_parameters": rope, "attn_implementation": attention}
    if isinstance(config, MoeConfig):
        given = Qwen3MoeConfig(**fields, **options, norm_topk_prob=True, experts_implementation="eager")
        model = Qwen3MoeForCausalLM(given)
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**fields, **options))
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
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm, Qwen3MoeTopKRouter

    model.loss_function = lambda logits, labels, *_, **__: F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    for module in model.modules():
        if isinstance(module, Qwen3MoeTopKRouter):
            module.forward = lambda x, router=module: _routed(x, router)
        if isinstance(module, Qwen3RMSNorm | Qwen3MoeRMSNorm):
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
