"""The adapters of the two ends, by PEFT's names.

V vocab_size    h hidden_size    r rank
"""

from collections.abc import Iterator, Sequence
from math import prod

from torch import Tensor

from harness.spec import ModelConfig, Unsupported, Workload
from impls.common.weights import weight

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
# The embedding's A [r, V] and B [h, r]; one adapter of tied weights is the embedding's.
EMBEDDING_A, EMBEDDING_B = f"{EMBEDDING}.lora_embedding_A", f"{EMBEDDING}.lora_embedding_B"
HEAD_A, HEAD_B = f"{HEAD}.lora_A.weight", f"{HEAD}.lora_B.weight"  # [r, h], [V, r]


def adapters(model: ModelConfig, rank: int, ends: Sequence[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    if "embedding" in ends or "tied" in ends:
        yield EMBEDDING_A, (rank, model.vocab_size)
        yield EMBEDDING_B, (model.hidden_size, rank)
    if "head" in ends:
        yield HEAD_A, (rank, model.hidden_size)
        yield HEAD_B, (model.vocab_size, rank)


def parameters(model: ModelConfig, rank: int, ends: Sequence[str]) -> int:
    """φ, the number of trained parameters."""
    return sum(prod(shape) for _, shape in adapters(model, rank, ends))


def initial(workload: Workload, rank: int, ends: Sequence[str], **options: object) -> Iterator[tuple[str, Tensor]]:
    """The adapters, float32, all drawn: with a factor of zeros the other one's gradient is zero, and an engine without
    it would not be noticed. A row of A for the embedding is long, and is drawn as B's rows are."""
    for name, shape in adapters(workload.model, rank, ends):
        if name == EMBEDDING_A:
            yield name, weight(workload, name, shape[::-1]).T.contiguous()
        else:
            yield name, weight(workload, name, shape) / 4


def check(model: ModelConfig, ends: Sequence[str]) -> None:
    """An adapter of one end cannot be folded into a matrix that the other end has too."""
    if model.tie_word_embeddings != ("tied" in ends):
        has = "share one matrix" if model.tie_word_embeddings else "have a matrix each"
        raise Unsupported(f"the model's embedding and head {has}: adapters of {' and '.join(ends)} are for another one")
