"""The common decoder, cut for an engine's own checkpoint function."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from impls.acceleration.activation_checkpointing.attention import attend
from impls.acceleration.activation_checkpointing.cuts import halves
from impls.common.decoder import Body
from impls.common.rope import rope_table

Run = Callable[..., Tensor]
Checkpoint = Callable[..., Any]  # checkpoint(run, *inputs)


def plainly(run: Run, *inputs: Tensor) -> Tensor:
    return run(*inputs)


def segmented(
    body: Body,
    cut: Sequence[range],
    whole: Checkpoint = plainly,
    nested: bool = False,
    alone: Checkpoint | None = None,
) -> None:
    """``whole`` runs each segment of ``cut``, or with ``nested`` each half, half of a half and so on; ``alone`` runs
    each layer's attention. Scores are kept unless they are computed again."""
    for index, layer in enumerate(body.layers):
        own = partial(attend, window=body.config.window(index))
        layer.self_attn.attend = own if alone is None else partial(alone, own)

    def run(part: range) -> Run:
        def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            for index in part:
                x = body.layers[index](x, cos, sin)
            return x

        return forward

    def halved(part: range) -> Run:
        def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            for half in halves(part):
                x = whole(halved(half), x, cos, sin)
            return x

        return forward if len(part) > 1 else run(part)

    def forward(tokens: Tensor) -> Tensor:
        x = body.embed_tokens(tokens)  # [b, s, h]
        cos, sin = (table.to(x.dtype) for table in rope_table(tokens.shape[1], body.config, tokens.device))
        cos.no_checkpointing = sin.no_checkpointing = True  # DeepSpeed empties the inputs that it keeps elsewhere
        every = range(len(body.layers))
        if nested:
            x = halved(every)(x, cos, sin)
        for part in cut:
            x = whole(run(part), x, cos, sin)
        if not nested and not cut:
            x = run(every)(x, cos, sin)
        return body.norm(x)

    body.forward = forward
