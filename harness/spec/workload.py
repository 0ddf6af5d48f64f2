"""The work of every engine: model, data, optimizer, precision, steps and seed."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from math import inf, prod

from harness.spec.topology import Topology

DTYPES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}  # bytes per element
TORCH_NAMES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # PyTorch's names
OPTIMIZERS = ("sgd", "adamw")
# Poisoned work: the last row of this weight is NaN, and its token occurs only in this step, in the last sequence.
POISONED_WEIGHT, POISONED_STEP = "model.embed_tokens.weight", 2
MAY_BE_ZERO = ("dropout", "router_aux_loss_coef", "router_z_loss_coef")  # fields of a model


@dataclass(frozen=True)
class ModelConfig:
    """A Qwen3 decoder; the fields have the names of Hugging Face's ``Qwen3Config``."""

    vocab_size: int = 256
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 16
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    tie_word_embeddings: bool = False
    dropout: float = 0.0  # of the output of each half of a layer; with it, no two engines draw the same numbers
    stochastic_depth: bool = False  # each sequence skips one layer, which its first token chooses

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if name not in MAY_BE_ZERO and not isinstance(size, bool) and not 0 < size < inf:
                raise ValueError(f"model.{name} must be positive and finite, not {size}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"model.num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"model.num_key_value_heads {self.num_key_value_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be from 0 to below 1, not {self.dropout}")
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim {self.head_dim} must be even: RoPE rotates pairs")

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Canonical parameter names (those of ``Qwen3ForCausalLM``) and shapes, in the order of the forward pass."""
        h = self.hidden_size
        yield "model.embed_tokens.weight", (self.vocab_size, h)
        for layer in range(self.num_hidden_layers):
            yield from ((f"model.layers.{layer}.{name}", shape) for name, shape in self.layer_shapes())
        yield "model.norm.weight", (h,)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, h)

    def layer_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The parameters of one layer, by their names within it."""
        h, d = self.hidden_size, self.head_dim
        q, kv = self.num_attention_heads * d, self.num_key_value_heads * d
        yield "input_layernorm.weight", (h,)
        yield "self_attn.q_proj.weight", (q, h)
        yield "self_attn.k_proj.weight", (kv, h)
        yield "self_attn.v_proj.weight", (kv, h)
        yield "self_attn.q_norm.weight", (d,)
        yield "self_attn.k_norm.weight", (d,)
        yield "self_attn.o_proj.weight", (h, q)
        yield "post_attention_layernorm.weight", (h,)
        yield from ((f"mlp.{name}", shape) for name, shape in self.mlp_shapes())

    def mlp_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The parameters of the part of a layer that acts on each token alone."""
        h, f = self.hidden_size, self.intermediate_size
        yield "gate_proj.weight", (f, h)
        yield "up_proj.weight", (f, h)
        yield "down_proj.weight", (h, f)

    @property
    def parameters(self) -> int:
        """Ψ: the number of distinct trainable parameters."""
        layer = sum(prod(shape) for _, shape in self.layer_shapes())
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + self.hidden_size


@dataclass(frozen=True)
class MoeConfig(ModelConfig):
    """A Qwen3-MoE decoder, whose layers have experts. The fields have the names of Hugging Face's ``Qwen3MoeConfig``,
    the parameters those of ``Qwen3MoeForCausalLM`` in Transformers 5: an expert's gate and up are one matrix.

    The last three are the routers' losses: the training loss is the mean over the tokens that have a label, of their
    cross-entropy, of the balance loss of their micro-batch (with ``seq_aux``, as DeepSeek's config calls it, of their
    sequence) and of their z loss; see ``impls/common/routers.py``."""

    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 96
    router_aux_loss_coef: float = 0.0
    router_z_loss_coef: float = 0.0
    seq_aux: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"model.num_experts_per_tok {self.num_experts_per_tok} exceeds model.num_experts {self.num_experts}"
            )
        for name in ("router_aux_loss_coef", "router_z_loss_coef"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"model.{name} must be 0 or more and finite, not {getattr(self, name)}")

    @property
    def router_losses(self) -> bool:
        """Whether the routers have losses of their own."""
        return bool(self.router_aux_loss_coef or self.router_z_loss_coef)

    def mlp_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        h, f, experts = self.hidden_size, self.moe_intermediate_size, self.num_experts
        yield "gate.weight", (experts, h)
        yield "experts.gate_up_proj", (experts, 2 * f, h)
        yield "experts.down_proj", (experts, h, f)


@dataclass(frozen=True)
class Workload:
    """One piece of work. ``batch_size`` counts sequences over all ranks; each rank accumulates ``micro_batches``."""

    name: str = "tiny"
    model: ModelConfig = field(default_factory=ModelConfig)
    batch_size: int = 8
    micro_batches: int = 1
    sequence_length: int = 32
    min_length: int = 0  # sequences end at random from this length on, with labels -100 after the end; 0: full length
    unlabelled: int = 0  # the first sequences of the batch, which have no label at all
    poisoned: bool = False  # the second step's gradient is NaN on the rank that has the last sequence, and only there
    input_scale: float = 1.0  # standard deviation of the queries and keys that an attention Function is given
    steps: int = 5
    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    max_grad_norm: float = 0.0  # 0: no clipping
    dtype: str = "fp32"
    seed: int = 0
    weights: str = ""  # a Hugging Face folder; empty: drawn from the seed
    data: str = ""  # a file of text or conversations, see harness.spec; empty: drawn from the seed
    tokenizer: str = ""  # tokenizer.json or a folder that holds it; empty: the one beside the weights

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is unknown; known: {', '.join(DTYPES)}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r} is unknown; known: {', '.join(OPTIMIZERS)}")
        if not 0 <= self.min_length <= self.sequence_length:
            raise ValueError(f"min_length {self.min_length} must be 0 to sequence_length {self.sequence_length}")
        for name in ("batch_size", "micro_batches", "sequence_length", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.unlabelled < self.batch_size:
            raise ValueError(f"unlabelled {self.unlabelled} must be 0 to below batch_size {self.batch_size}")
        if self.poisoned and (self.weights or self.data or self.model.tie_word_embeddings):
            raise ValueError("poisoned requires synthetic data, and weights from the seed that are not tied")
        for name in ("lr", "eps", "input_scale"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")
        for name in ("weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name} must be 0 or more and finite, not {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be from 0 to below 1, not {list(self.betas)}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, not {self.seed}")

    def with_(self, **changes: object) -> "Workload":
        return replace(self, **changes)  # type: ignore[arg-type]

    def check(self, topology: Topology) -> str:
        """The reason why this work does not fit this topology, or an empty string."""
        model, share = self.model, topology.dp * self.micro_batches
        if self.batch_size % share:
            return (
                f"batch_size {self.batch_size} is not a multiple of dp × micro_batches = {share}; "
                f"use a multiple of {share} or another topology"
            )
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            if getattr(model, name) % topology.tp:
                return f"tp {topology.tp} does not divide model.{name} {getattr(model, name)}"
        if model.num_hidden_layers % topology.pp:
            return f"pp {topology.pp} does not divide model.num_hidden_layers {model.num_hidden_layers}"
        if self.sequence_length % topology.cp:
            return f"cp {topology.cp} does not divide sequence_length {self.sequence_length}"
        if model.dropout and topology.world_size > 1:
            return f"model.dropout {model.dropout} requires one rank: several ranks would draw different masks"
        if model.stochastic_depth and topology.tp * topology.pp * topology.cp > 1:
            return "model.stochastic_depth requires data parallelism alone: other ranks do not see the first token"
        return ""

    @property
    def tokens(self) -> int:
        """Tokens per step, over all ranks."""
        return self.batch_size * self.sequence_length

    @property
    def element_size(self) -> int:
        """Bytes of one element of the compute dtype."""
        return DTYPES[self.dtype]
