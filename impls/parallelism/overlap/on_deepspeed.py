"""DeepSpeed's Domino: its ``DominoTransformer``, which has the halves, their order, the asynchronous products and sums.

Its layer is GPT's: LayerNorm, GELU, no QK-norm, and ``gated_linear_unit`` is read but has no effect. Norms, activation,
first product of the MLP and rotation can be exchanged, and here are Qwen3's; the attention, with a head of keys and
values for every head of queries, cannot. Embedding, head, loss and optimizer, which Domino leaves to the
training script, are tensor parallelism's.
"""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace

import torch
from deepspeed.runtime.domino.async_linear import DominoAsyncColumnParallelLinear
from deepspeed.runtime.domino.transformer import DominoTransformer, ModelType
from torch import Tensor, nn
from torch.nn import functional as F

from harness.spec import Batch, ModelConfig, Topology, Unsupported, Workload
from impls.common.clipping import clip_by_global_norm
from impls.common.decoder import RMSNorm, mean
from impls.common.features import qwen3_alone
from impls.common.mesh import device, mesh, share
from impls.common.optimizer import MasterWeights
from impls.common.rope import rope_table, rotate
from impls.common.shards import bounds, collect, dim, shard
from impls.common.sums import mean_flat, sum_flat
from impls.common.weights import TORCH_DTYPES, initial
from impls.engines.deepspeed.engine import deepspeed
from impls.engines.fused import pack, unpack
from impls.parallelism.tensor_parallel.operators import Group, column_parallel, reduce
from impls.parallelism.tensor_parallel.vocabulary import CrossEntropy, embedding

# Domino's name of each part of a layer → its canonical parameters; q, k and v head by head.
LAYER = {
    "input_layernorm": ("input_layernorm",),
    "self_attention.query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.q_norm": ("self_attn.q_norm",),
    "self_attention.k_norm": ("self_attn.k_norm",),
    "self_attention.dense": ("self_attn.o_proj",),
    "post_attention_layernorm": ("post_attention_layernorm",),
    "linear_fc1": ("mlp.gate_proj", "mlp.up_proj"),
    "linear_fc2": ("mlp.down_proj",),
}
OUTSIDE = {"embedding": "model.embed_tokens", "body.final_layernorm": "model.norm", "head": "lm_head"}


def canonical(name: str) -> tuple[str, ...]:
    """The canonical parameters in our module's parameter of this name."""
    module = name.removesuffix(".weight")
    if module in OUTSIDE:
        return (f"{OUTSIDE[module]}.weight",)
    layer, _, part = module.removeprefix("body.layers.").partition(".")
    return tuple(f"model.layers.{layer}.{each}.weight" for each in LAYER[part])


def swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


class Norm(RMSNorm):
    """Domino's products view their input as a matrix, but half of [s, b, h] is not contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous())


class DominoModel(nn.Module):
    def __init__(self, config: ModelConfig, group: Group, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.group, t = config, group, group.size()
        h, eps = config.hidden_size, config.rms_norm_eps
        self.start, end = bounds(config.vocab_size, group.rank(), t)
        self.embedding = nn.Embedding(end - self.start, h, dtype=dtype)
        self.head = nn.Linear(h, end - self.start, bias=False, dtype=dtype)
        if config.tie_word_embeddings:
            self.head.weight = self.embedding.weight
        settings = SimpleNamespace(
            num_layers=config.num_hidden_layers,
            hidden_size=h,
            ffn_hidden_size=config.intermediate_size,
            num_attention_heads=config.num_attention_heads,
            kv_channels=config.head_dim,
            layernorm_epsilon=eps,
            params_dtype=dtype,
            add_bias_linear=False,
            gated_linear_unit=True,
            attention_dropout=0.0,
            hidden_dropout=0.0,
            apply_residual_connection_post_layernorm=False,
            perform_initialization=False,
            init_method=None,
            output_layer_init_method=None,
            domino_intra_layer_overlap=False,
        )
        ranks = SimpleNamespace(
            get_tensor_model_parallel_group=lambda: group, get_tensor_model_parallel_world_size=lambda: t
        )
        self.body = DominoTransformer(settings, ranks, None, ModelType.encoder_or_decoder)
        self.body.final_layernorm = Norm(h, eps)
        for layer in self.body.layers:
            layer.input_layernorm, layer.post_attention_layernorm = Norm(h, eps), Norm(h, eps)
            width = 2 * config.intermediate_size // t
            layer.linear_fc1 = DominoAsyncColumnParallelLinear(h, width, group, settings, None, bias=False)
            layer.mlp_activation_func = swiglu
            attention = layer.self_attention
            attention.q_norm, attention.k_norm = RMSNorm(config.head_dim, eps), RMSNorm(config.head_dim, eps)
            attention.apply_rotary_pos_emb = self._rotation(attention)
        self.to(device(), dtype)

    @staticmethod
    def _rotation(attention: nn.Module):
        def rotated(x: Tensor, table: tuple[str, Tensor, Tensor]) -> Tensor:
            """Queries or keys, [b, heads, s, d], after their norm."""
            norm, cos, sin = table
            return rotate(getattr(attention, norm)(x), cos, sin)

        return rotated

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Token ids [b, s] and labels [b, s] → mean cross-entropy, the same scalar on every rank."""
        x = reduce(embedding(tokens.t(), self.embedding.weight, self.start), self.group)  # [s, b, h]
        cos, sin = (table.to(x.dtype) for table in rope_table(len(x), self.config, x.device))
        x = self.body(x, None, rotary_pos_emb=(("q_norm", cos, sin), ("k_norm", cos, sin)))
        (logits,) = column_parallel(x, self.group, self.head.weight)
        return mean(CrossEntropy.apply(logits, labels.t(), self.start, self.group), labels.t())


class Domino:
    def __init__(self, workload: Workload, topology: Topology) -> None:
        qwen3_alone(workload, "DeepSpeed's Domino is set up here with Qwen3's layers; it", "rope_scaling")
        places = mesh(topology)
        self.workload, self.topology = workload, topology
        self.tp, self.dp, self.dp_rank = places.get_group("tp"), places.get_group("dp"), places.get_local_rank("dp")
        deepspeed.init_distributed("gloo" if device().type == "cpu" else "nccl", dist_init_required=False)
        self.model = DominoModel(workload.model, self.tp, TORCH_DTYPES[workload.dtype])
        self.weights = dict(self.model.named_parameters())
        waiting = {part: name for name in self.weights for part in canonical(name)}
        parts: dict[str, Tensor] = {}
        with torch.no_grad():
            for part, full in initial(workload):
                name = waiting[part]
                parts[part] = shard(part, full, self.tp.rank(), topology.tp)
                if all(each in parts for each in canonical(name)):
                    held = [parts.pop(each) for each in canonical(name)]
                    self.weights[name].copy_(pack(held, workload.model))
        self.optimizer = MasterWeights(self.weights.values(), workload)

    def backward(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=device(), dtype=torch.float64)
        for micro, part in share(batch, self.workload, self.dp_rank, self.topology.dp):
            loss = self.model(*micro) * part * self.topology.dp
            loss.backward()
            total += loss.detach()
        # A QK-norm's gain acts only on this rank's heads, so its gradient is a sum over tp.
        sum_flat([p.grad for n, p in self.weights.items() if "q_norm" in n or "k_norm" in n], self.tp)
        mean_flat([p.grad for p in self.weights.values()], self.dp)
        return total

    def update(self) -> None:
        gradients = {cut: [p.grad for n, p in self.weights.items() if self._cut(n) == cut] for cut in (True, False)}
        clip_by_global_norm({(self.tp,): gradients[True], (): gradients[False]}, self.workload.max_grad_norm)
        self.optimizer.step()

    @staticmethod
    def _cut(name: str) -> bool:
        return dim(canonical(name)[0]) is not None

    def gradients(self) -> Mapping[str, Tensor]:
        return self._collect(p.grad for p in self.weights.values())

    def parameters(self) -> Mapping[str, Tensor]:
        return self._collect(self.optimizer.masters)

    def _collect(self, held: Iterable[Tensor]) -> Mapping[str, Tensor]:
        parts: dict[str, Tensor] = {}
        for name, tensor in zip(self.weights, held, strict=True):
            names = canonical(name)
            parts |= zip(names, unpack(tensor, len(names), self.workload.model), strict=True)
        return collect(parts, self.tp)


def build(workload: Workload, topology: Topology, technique: str) -> Domino:
    model = workload.model
    if model.num_key_value_heads != model.num_attention_heads:
        raise Unsupported(
            "DeepSpeed's Domino cuts its fused projection into as many keys and values as queries: "
            f"{model.num_key_value_heads} key/value heads under {model.num_attention_heads} query heads do not fit"
        )
    if model.num_attention_heads == topology.tp:
        raise Unsupported(
            "DeepSpeed 0.19.8's Domino fails with one head a rank: its contiguous() copies nothing then, and it cannot "
            "view the gradient of the fused projection as a matrix"
        )
    if (rows := workload.batch_size // (topology.dp * workload.micro_batches)) < 2:
        raise Unsupported(
            f"DeepSpeed's Domino divides a micro-batch into two halves of its rows, but this one has {rows}"
        )
    return Domino(workload, topology)
