"""The work of every engine: model, data, optimizer, precision, steps and seed."""

from dataclasses import dataclass, field, replace
from math import inf

from harness.spec.model import ModelConfig, MoeConfig
from harness.spec.topology import Topology

DTYPES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}  # bytes per element
TORCH_NAMES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # PyTorch's names
OPTIMIZERS = ("sgd", "adamw")
# Poisoned work: the last row of this weight is NaN, and its token occurs only in this step, in the last sequence.
POISONED_WEIGHT, POISONED_STEP = "model.embed_tokens.weight", 2


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
    applied_twice: bool = False  # half of a micro-batch passes the model inside the engine, before the same backward()
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
        if self.applied_twice and isinstance(self.model, MoeConfig) and self.model.router_losses:
            raise ValueError("applied_twice requires a model without routers' losses, which depend on the micro-batch")
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
        if self.applied_twice and self.batch_size < 2 * share:
            return f"applied_twice requires micro-batches of two sequences or more: batch_size {2 * share} here"
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            if getattr(model, name) % topology.tp:
                return f"tp {topology.tp} does not divide model.{name} {getattr(model, name)}"
        if model.num_hidden_layers % topology.pp:
            return f"pp {topology.pp} does not divide model.num_hidden_layers {model.num_hidden_layers}"
        if self.sequence_length % topology.cp:
            return f"cp {topology.cp} does not divide sequence_length {self.sequence_length}"
        if isinstance(model, MoeConfig) and model.global_aux and self.micro_batches > 1:
            return "model.global_aux requires one micro-batch: its choices are counted before the backward pass"
        if model.dropout and topology.world_size > 1:
            return f"model.dropout {model.dropout} requires one rank: several ranks would draw different masks"
        if model.stochastic_depth and topology.tp * topology.pp * topology.cp > 1:
            return "model.stochastic_depth requires data parallelism alone: other ranks do not see the first token"
        if self.applied_twice and topology.tp * topology.pp * topology.cp > 1:
            return "applied_twice requires data parallelism alone: elsewhere no model is inside an engine"
        return ""

    @property
    def tokens(self) -> int:
        """Tokens per step, over all ranks."""
        return self.batch_size * self.sequence_length

    @property
    def element_size(self) -> int:
        """Bytes of one element of the compute dtype."""
        return DTYPES[self.dtype]
