"""Megatron-Core's own GPTModel (local layer specification: no Transformer Engine), with its DDP, schedules and
optimizer."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import Tensor, nn

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.decoder import mean
from impls.common.experts import without_experts
from impls.common.features import qwen3_alone
from impls.common.mesh import device, gather, share
from impls.common.precision import without_loss_scale
from impls.common.routers import has_router_losses
from impls.common.shards import collect, dim, shard
from impls.common.weights import TORCH_DTYPES, initial
from impls.engines.fused import pack, unpack
from impls.engines.megatron.optimizer import (
    gradient,
    megatron_optimizer,
    settings,
    sharded_gradients,
    sharded_parameters,
)
from impls.engines.megatron.start import differences, start

# Megatron's name of each part of a layer → the canonical parameters that it holds.
LAYER = {
    "input_layernorm": ("input_layernorm",),
    "self_attention.linear_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.q_layernorm": ("self_attn.q_norm",),
    "self_attention.k_layernorm": ("self_attn.k_norm",),
    "self_attention.linear_proj": ("self_attn.o_proj",),
    "pre_mlp_layernorm": ("post_attention_layernorm",),
    "mlp.linear_fc1": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.linear_fc2": ("mlp.down_proj",),
    "mlp.router": ("mlp.gate",),
}
EXPERTS, EXPERT = "mlp.experts.local_experts.", {"linear_fc1": "gate_up_proj", "linear_fc2": "down_proj"}
OUTSIDE = {
    "embedding.word_embeddings": ("model.embed_tokens",),
    "decoder.final_layernorm": ("model.norm",),
    "output_layer": ("lm_head",),
}
# The parts of a module of multi-token prediction, beside those of its layer.
DEPTH = {"enorm": "enorm", "hnorm": "hnorm", "eh_proj": "eh_proj", "final_layernorm": "norm"}


def canonical(name: str) -> tuple[str, ...]:
    """The canonical parameters that Megatron's parameter of this name holds."""
    module = name.removesuffix(".weight")
    if module in OUTSIDE:
        return tuple(f"{part}.weight" for part in OUTSIDE[module])
    if module.startswith("mtp.layers."):
        depth, _, part = module.removeprefix("mtp.layers.").partition(".")
        if part in DEPTH:
            return (f"mtp.{depth}.{DEPTH[part]}.weight",)
        return tuple(f"mtp.{depth}.layer.{each}.weight" for each in LAYER[part.removeprefix("transformer_layer.")])
    layer, _, part = module.removeprefix("decoder.layers.").partition(".")
    if part.startswith(EXPERTS):
        index, _, kind = part.removeprefix(EXPERTS).partition(".")
        return (f"model.layers.{layer}.mlp.experts.{EXPERT[kind]}.{index}.weight",)
    return tuple(f"model.layers.{layer}.{part}.weight" for part in LAYER[part])


def transformer_config(workload: Workload, topology: Topology, **changes: Any) -> TransformerConfig:
    """Qwen3's layer. Options that are off need Apex or a GPU, or compute something else (see each)."""
    model = workload.model
    return TransformerConfig(
        num_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.intermediate_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_key_value_heads,
        kv_channels=model.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=model.rms_norm_eps,
        qk_layernorm=True,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=model.dropout,
        attention_dropout=0.0,
        params_dtype=TORCH_DTYPES[workload.dtype],
        bf16=workload.dtype == "bf16",
        fp16=workload.dtype == "fp16",
        tensor_model_parallel_size=topology.tp,
        pipeline_model_parallel_size=topology.pp,
        pipeline_dtype=TORCH_DTYPES[workload.dtype],
        use_cpu_initialization=True,
        perform_initialization=False,
        gradient_accumulation_fusion=False,  # an Apex kernel
        masked_softmax_fusion=False,  # a CUDA kernel
        persist_layer_norm=False,  # an Apex kernel
        apply_rope_fusion=False,  # a Transformer Engine kernel
        bias_activation_fusion=False,  # rounds differently
        cross_entropy_loss_fusion=False,  # casts the gradient to bfloat16
        **changes,
    )


def specification() -> ModuleSpec:
    return get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm")


class Gpt:
    """GPTModels of this rank's pipeline stages, ``chunks`` of them; without a pipeline, one stage is the whole model.
    ``shard_states`` selects the distributed optimizer; ``further`` gives the specification of modules behind the last
    layer; ``changes`` apply to :func:`transformer_config`."""

    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        layers: Callable[[], ModuleSpec | TransformerBlockSubmodules] = specification,
        chunks: int = 1,
        shard_states: bool = False,
        further: Callable[[TransformerConfig], Any] | None = None,
        **changes: Any,
    ) -> None:
        if workload.dtype == "fp64":
            raise Unsupported("Megatron-Core's optimizers take float32, float16 and bfloat16 weights only")
        without_loss_scale(workload, "Megatron-Core")
        if "num_moe_experts" not in changes:
            without_experts(workload, "Megatron-Core's GPTModel is set up here with")
        qwen3_alone(workload, "Megatron-Core's GPTModel is set up here as Qwen3; it")
        if workload.model.vocab_size % topology.tp:
            raise Unsupported(
                f"Megatron-Core cuts the vocabulary into equal parts only, and tp {topology.tp} does not divide "
                f"{workload.model.vocab_size}; rows of padding would take part in its softmax"
            )
        stages = topology.pp * chunks
        if workload.model.num_hidden_layers % stages:
            raise Unsupported(
                f"Megatron-Core's stages have as many layers each: {stages} does not divide "
                f"{workload.model.num_hidden_layers}"
            )
        start(topology, chunks, expert_tp=changes.get("expert_tensor_parallel_size"))
        self.workload, self.topology, self.shard_states = workload, topology, shard_states
        self.dp_rank = parallel_state.get_data_parallel_rank()
        self.tp = parallel_state.get_tensor_model_parallel_group()
        self.pp = parallel_state.get_pipeline_model_parallel_group()
        model = workload.model
        self.config = transformer_config(
            workload, topology, virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None, **changes
        )
        parts = []
        for chunk in range(chunks):
            stage = {"ignore_virtual": chunks == 1, "vp_stage": chunk if chunks > 1 else None}
            part = GPTModel(
                config=self.config,
                transformer_layer_spec=layers(),
                vocab_size=model.vocab_size,
                max_sequence_length=workload.sequence_length,
                pre_process=parallel_state.is_pipeline_first_stage(**stage),
                post_process=parallel_state.is_pipeline_last_stage(**stage),
                parallel_output=True,
                share_embeddings_and_output_weights=model.tie_word_embeddings,
                position_embedding_type="rope",
                rotary_base=model.rope_theta,
                mtp_block_spec=further(self.config) if further else None,
                vp_stage=stage["vp_stage"],
            )
            parts.append(part.to(device(), self.config.params_dtype))  # the norms are created in float32
        self.weights = {self._global(name, part): p for part in parts for name, p in part.named_parameters()}
        self._fill()
        communication = DistributedDataParallelConfig(
            grad_reduce_in_fp32=False,
            use_distributed_optimizer=shard_states,
            overlap_grad_reduce=shard_states,
            overlap_param_gather=shard_states,
        )
        self.parts = [DistributedDataParallel(self.config, communication, part) for part in parts]
        self.config.no_sync_func = self.parts[0].no_sync if chunks == 1 else [part.no_sync for part in self.parts]
        self.config.finalize_model_grads_func = finalize_model_grads  # sums over dp, tp (QK-norms), pp (tied embedding)
        chosen = settings(workload, self.config, shard_states)
        self.configuration = differences(self.config, communication, chosen)
        self.optimizer = megatron_optimizer(chosen, self.parts, overrides={})

    def _global(self, name: str, part: GPTModel) -> str:
        """Megatron counts the layers of each stage from 0; and a tied head may be on another rank than the
        embedding."""
        if name.startswith("decoder.layers."):
            _, _, local, rest = name.split(".", 3)
            return f"decoder.layers.{part.decoder.layers[int(local)].layer_number - 1}.{rest}"
        tied = self.workload.model.tie_word_embeddings and name == "output_layer.weight"
        return "embedding.word_embeddings.weight" if tied else name

    def initial(self) -> Iterator[tuple[str, Tensor]]:
        return initial(self.workload)

    def cut(self, part: str) -> int | None:
        """The dim along which a parameter is divided over tp."""
        return dim(part)

    def _fill(self) -> None:
        """Copies this rank's part of the initial weights into the model, one parameter at a time."""
        waiting = {part: name for name in self.weights for part in canonical(name)}
        parts: dict[str, Tensor] = {}
        with torch.no_grad():
            for part, full in self.initial():
                name = waiting.pop(part, None)
                if name is None:  # another stage's
                    continue
                parts[part] = shard(part, full, self.tp.rank(), self.topology.tp)
                if all(each in parts for each in canonical(name)):
                    held = [parts.pop(each) for each in canonical(name)]
                    self.weights[name].copy_(pack(held, self.workload.model))
                    # As in Megatron's own initialisers; without the mark, only rank 0's part of a weight would enter
                    # the clipping norm.
                    if (cut := self.cut(part)) is not None:
                        set_tensor_model_parallel_attributes(self.weights[name], True, cut, 1)
        if waiting:
            raise ValueError(f"no initial weight for {', '.join(waiting)}")

    def micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """This rank's, each with the weight of its mean loss."""
        dp = self.topology.dp
        return ((micro, part * dp) for micro, part in share(batch, self.workload, self.dp_rank, dp))

    def backward(self, batch: Batch) -> Tensor:
        work, weighed = self.workload, list(self.micro_batches(batch))
        losses = get_forward_backward_func()(
            forward_step_func=self._forward,
            data_iterator=[iter(weighed) for _ in self.parts],
            model=self.parts,
            num_microbatches=len(weighed),
            seq_length=work.sequence_length,
            micro_batch_size=len(weighed[0][0].inputs),
            forward_only=False,
        )
        total = torch.zeros((), device=device())
        for loss in losses:  # losses of the last stage; other stages have none
            total += loss
        if self.topology.pp > 1:
            dist.all_reduce(total, group=self.pp)
        return total

    def _forward(self, data: Iterator[tuple[Batch, float]], model: nn.Module) -> tuple[Tensor, Callable[..., Any]]:
        (tokens, labels), weight = next(data)

        def loss(losses: Tensor) -> tuple[Tensor, ...]:
            value, counted = mean(losses, labels), labels >= 0
            if self.config.calculate_per_token_loss:  # finalize_model_grads divides the sum by the number
                return losses.masked_fill(~counted, 0.0).sum(), counted.sum().int(), value.detach() * weight
            value = value * weight
            # The schedule divides the first by the number of micro-batches, and multiplies it by cp.
            return value * self.workload.micro_batches / self.topology.cp, value.detach()

        return self.losses(model, tokens, labels), loss

    def losses(self, model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
        """The loss of each token, [b, s]; on a stage that is not the last one, its activations."""
        # Routers leave the tokens without a label out of their losses, if they are told.
        padded = has_router_losses(self.workload.model) and (self.workload.min_length or self.workload.unlabelled)
        padding = {"padding_mask": labels < 0} if padded else {}
        return self.forward(model, tokens, labels=labels.clamp(min=0), **padding)

    @staticmethod
    def forward(model: nn.Module, tokens: Tensor, **options: Any) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        found: Tensor = model(tokens, positions, None, **options)
        return found

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        for part in self.parts:
            part.zero_grad_buffer()

    def gradients(self) -> Mapping[str, Tensor]:
        if self.shard_states:
            return self._collect(sharded_gradients(self.optimizer, self.weights))
        return self._collect({name: gradient(parameter) for name, parameter in self.weights.items()})

    def parameters(self) -> Mapping[str, Tensor]:
        if self.shard_states:
            return self._collect(sharded_parameters(self.optimizer, self.weights))
        return self._collect({name: getattr(p, "main_param", p) for name, p in self.weights.items()})

    def _collect(self, fused: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        whole = collect(dict(self._canonical(fused)), self.tp)
        return gather(whole, self.pp) if self.topology.pp > 1 else whole

    def _canonical(self, fused: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in fused.items():
            parts = canonical(name)
            yield from zip(parts, unpack(tensor.detach(), len(parts), self.workload.model), strict=True)

    def padding(self) -> int:
        """The number of elements by which Megatron's flat gradient buffers exceed the parameters."""
        held = sum(buffer.numel for part in self.parts for buffer in (*part.buffers, *part.expert_parallel_buffers))
        return held - sum(p.numel() for p in self.weights.values())
