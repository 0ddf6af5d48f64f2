"""The layers of each stage of a pipeline, as plain numbers, so that schedules need no PyTorch."""

import itertools

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def split(layers: int, stages: int) -> list[range]:
    """The number of layers of each stage; if they do not divide evenly, the first stages have one more. Raises
    ValueError if there are too few."""
    if layers < stages:
        raise ValueError(f"{layers} layers do not fill {stages} stages")
    ends = [s * (layers // stages) + min(s, layers % stages) for s in range(stages + 1)]
    return [range(a, b) for a, b in itertools.pairwise(ends)]
