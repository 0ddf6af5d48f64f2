"""Where a pipeline cuts the decoder: which layers a stage has. Plain numbers, so that schedules need no PyTorch."""

import itertools

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def split(layers: int, stages: int) -> list[range]:
    """Layers of each stage, the first stages one more where they do not divide. ValueError if there are too few."""
    if layers < stages:
        raise ValueError(f"{layers} layers do not fill {stages} stages")
    ends = [s * (layers // stages) + min(s, layers % stages) for s in range(stages + 1)]
    return [range(a, b) for a, b in itertools.pairwise(ends)]
