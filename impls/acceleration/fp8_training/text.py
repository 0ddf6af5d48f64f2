"""A language that a small decoder learns in some hundred steps: the next token depends on the last two."""

import torch
from torch import Tensor


def sentences(count: int, length: int, vocabulary: int, seed: int) -> Tensor:
    """[count, length] tokens. With a chance of 0.8 the next one is a fixed function of the last two, otherwise any."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(vocabulary, (8, vocabulary), generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(vocabulary, (count, length), generator=generator)
    told = torch.rand(count, length, generator=generator) < 0.8
    for place in range(2, length):
        rule = table[tokens[:, place - 2] % 8, tokens[:, place - 1]]
        tokens[:, place] = torch.where(told[:, place], rule, tokens[:, place])
    return tokens
