"""The work: a small language model on text of a fixed Markov chain, whose next token it learns from the last two."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from harness.spec import Curves, Workload

EVERY = 10  # steps whose mean loss is one score


def chain(vocabulary: int) -> Tensor:
    """The probability of a token after two others, [V, V, V]; each of the two has a logit of its own."""
    first, second = 2 * torch.randn(2, vocabulary, vocabulary, generator=torch.Generator().manual_seed(0))
    return (first[:, None] + second).softmax(-1)


def batches(workload: Workload, seed: int, budget: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of tokens [b, 2] and the token after them [b], a batch for each step."""
    generator, follows = torch.Generator().manual_seed(seed), chain(workload.model.vocab_size)
    for _ in range(budget // workload.batch_size):
        pairs = torch.randint(workload.model.vocab_size, (workload.batch_size, 2), generator=generator)
        yield pairs, torch.multinomial(follows[pairs[:, 0], pairs[:, 1]], 1, generator=generator)[:, 0]


class Model(nn.Module):
    """Pairs [b, 2] → logits [b, V]: an embedding, a hidden layer, a head."""

    def __init__(self, workload: Workload, seed: int) -> None:
        super().__init__()
        config, generator = workload.model, torch.Generator().manual_seed(seed)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.up = nn.Linear(2 * config.hidden_size, config.intermediate_size, bias=False)
        self.head = nn.Linear(config.intermediate_size, config.vocab_size, bias=False)
        with torch.no_grad():
            for weight in self.parameters():
                noise = torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5
                weight.copy_(noise.bfloat16())  # all precisions start from the same numbers

    def forward(self, pairs: Tensor) -> Tensor:
        return self.head(torch.nn.functional.silu(self.up(self.embed(pairs).flatten(1))))


def loss(model: nn.Module, pairs: Tensor, following: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(model(pairs).float(), following)


def curves(losses: Sequence[float], workload: Workload, seconds: float) -> Curves:
    """The mean loss of each EVERY steps, by the samples taken until then."""
    ends = range(EVERY, len(losses) + 1, EVERY)
    return Curves(
        [end * workload.batch_size for end in ends],
        [sum(losses[end - EVERY : end]) / EVERY for end in ends],
        seconds,
    )
