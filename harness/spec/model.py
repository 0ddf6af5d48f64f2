"""The decoders that are trained: their sizes and features, their parameters' names and shapes."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import inf, prod

ROPE_TYPES = ("linear", "llama3", "yarn")
MAY_BE_ZERO = ("dropout", "router_aux_loss_coef", "router_z_loss_coef", "sliding_window")  # fields of a model


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE's frequencies are changed for longer contexts; the fields have the names of Hugging Face's
    ``rope_parameters``. See ``impls/common/rope.py``."""

    rope_type: str
    factor: float
    original_max_position_embeddings: int = 0  # of llama3 and yarn
    low_freq_factor: float = 0.0  # of llama3, as the next one
    high_freq_factor: float = 0.0
    attention_factor: float = 0.0  # of yarn, as all that follow; 0: 0.1 ln(factor) + 1
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise ValueError(f"RoPE scaling {self.rope_type!r} is not supported; known: {', '.join(ROPE_TYPES)}")
        needed = ["factor"] + ["original_max_position_embeddings"] * (self.rope_type != "linear")
        needed += ["low_freq_factor", "high_freq_factor"] * (self.rope_type == "llama3")
        needed += ["beta_fast", "beta_slow"] * (self.rope_type == "yarn")
        for name in needed:
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"RoPE scaling's {name} must be positive and finite, not {getattr(self, name)}")
        if not 0 <= self.attention_factor < inf:
            raise ValueError(f"RoPE scaling's attention_factor must be 0 or more, not {self.attention_factor}")
        if self.rope_type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"RoPE scaling's low_freq_factor {self.low_freq_factor} must be below its high_freq_factor "
                f"{self.high_freq_factor}"
            )


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of the family of Qwen3, by default, Qwen2.5 and Llama; the first fields have the names of Hugging
    Face's ``Qwen3Config``, the features below are those in which its relatives differ."""

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
    qk_norm: bool = True  # Qwen3's; Qwen2.5 and Llama have none
    qkv_bias: bool = False  # Qwen2.5's; attention_bias of the others is this and o_bias
    o_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: RopeScaling | None = None
    sliding_window: int = 0  # the last positions that a token sees in the sliding layers, its own among them
    sliding_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if type(size) in (int, float) and name not in MAY_BE_ZERO and not 0 < size < inf:
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
        if self.sliding_window < 0 or bool(self.sliding_window) != bool(self.sliding_layers):
            raise ValueError(
                f"model.sliding_window {self.sliding_window} must be positive with model.sliding_layers "
                f"{list(self.sliding_layers)}, and 0 without them"
            )
        if not set(self.sliding_layers) <= set(range(self.num_hidden_layers)):
            raise ValueError(
                f"model.sliding_layers {list(self.sliding_layers)} must be among the {self.num_hidden_layers} layers"
            )

    def window(self, layer: int) -> int:
        """How many positions a token sees in this layer; 0: all before it, and its own."""
        return self.sliding_window if layer in self.sliding_layers else 0

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
        yield from _linear("self_attn.q_proj", q, h, self.qkv_bias)
        yield from _linear("self_attn.k_proj", kv, h, self.qkv_bias)
        yield from _linear("self_attn.v_proj", kv, h, self.qkv_bias)
        if self.qk_norm:
            yield "self_attn.q_norm.weight", (d,)
            yield "self_attn.k_norm.weight", (d,)
        yield from _linear("self_attn.o_proj", h, q, self.o_bias)
        yield "post_attention_layernorm.weight", (h,)
        yield from ((f"mlp.{name}", shape) for name, shape in self.mlp_shapes())

    def mlp_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The parameters of the part of a layer that acts on each token alone."""
        h, f = self.hidden_size, self.intermediate_size
        yield from _linear("gate_proj", f, h, self.mlp_bias)
        yield from _linear("up_proj", f, h, self.mlp_bias)
        yield from _linear("down_proj", h, f, self.mlp_bias)

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

    The last four are the routers' losses: the training loss is the mean over the tokens that have a label, of their
    cross-entropy, of the balance loss of their micro-batch (with ``seq_aux``, as DeepSeek's config calls it, of their
    sequence, with ``global_aux`` of the whole batch) and of their z loss; see ``impls/common/routers.py``."""

    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 96
    router_aux_loss_coef: float = 0.0
    router_z_loss_coef: float = 0.0
    seq_aux: bool = False
    global_aux: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mlp_bias:
            raise ValueError("model.mlp_bias: experts have no biases")
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"model.num_experts_per_tok {self.num_experts_per_tok} exceeds model.num_experts {self.num_experts}"
            )
        if self.seq_aux and self.global_aux:
            raise ValueError("model.seq_aux and model.global_aux: a balance loss is of sequences or of the whole batch")
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
