"""The promises of tensor parallelism: states ÷ t, and the all-reduces of f and g."""

from math import prod

from harness.spec import Topology, Workload

MOMENTS = {"sgd": 0, "adamw": 8}  # bytes per parameter: AdamW's two moments, in float32
REPLICATED = ("norm.weight", "o_proj.bias", "down_proj.bias")  # endings of the names of the only uncut parameters
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
CONTROL = 16  # bytes: a buffer up to this size counts as control, not as data


def held(workload: Workload, t: int) -> float:
    """The number of parameters on a rank: its t-th of the matrices, and all norms and biases behind sums (Shoeybi et
    al. 2019, §3)."""
    return sum(part(name, shape, t) for name, shape in workload.model.shapes())


def part(name: str, shape: tuple[int, ...], t: int) -> float:
    """A parameter's elements on the first rank, which has one more row of a vocabulary that t does not divide."""
    if name.endswith(REPLICATED):
        return prod(shape)
    if name in VOCABULARY:
        return -(-shape[0] // t) * prod(shape[1:])
    return prod(shape) / t


def states(workload: Workload, topology: Topology, validated: bool = False, own_head: bool = False) -> float:
    """Bytes of weights, gradients, moments, and masters if the weights are narrower than float32. An engine that pads
    the vocabulary holds more and reports it."""
    element = workload.element_size
    moments = MOMENTS[workload.optimizer] * (2 if element == 8 else 1)
    return held(workload, topology.tp) * (2 * element + (4 if element < 4 else 0) + moments)


def traffic(workload: Workload, topology: Topology, validated: bool = False, own_head: bool = False) -> float | None:
    """Bytes that a rank sends in a step, each all-reduce in a ring, 2(t−1)/t of its buffer (ibid. §3 and §5.1):

        every layer     2 forward (g) and 2 backward (f)            b·s·h elements each
        embedding       1 forward, and the head 1 backward          b·s·h elements each
        cross-entropy   largest logit, Σ exp, the label's logit     b·s elements each, in float32 or wider
        QK-norm         the gradients of both gains of every layer  in one buffer, once a step

    all but the last for each micro-batch of b sequences; with dp > 1 also the gradients of the rank's parameters. A
    validation pass has the forward all-reduces of b·s·h again, and gathers b·s·V logits, (t−1)/t of them. None for one
    rank.
    """
    model, dp, t, element = workload.model, topology.dp, topology.tp, workload.element_size
    if topology.world_size == 1:
        return None
    tokens = workload.tokens // dp // workload.micro_batches
    activation, statistic = tokens * model.hidden_size * element, tokens * max(4, element)
    gains = 2 * model.num_hidden_layers * model.head_dim * model.qk_norm * element
    step = (4 * model.num_hidden_layers + 2) * ring(activation, t) + ring(statistic, t) + ring(2 * statistic, t)
    if validated:
        logits = tokens * model.vocab_size * element
        step += (2 * model.num_hidden_layers + 1) * ring(activation, t) + ring(logits, t) / 2
    return workload.micro_batches * step + ring(gains, t) + ring(held(workload, t) * element, dp)


def ring(buffer: float, ranks: int) -> float:
    """Bytes that a rank sends in an all-reduce of a buffer, or in a reduce-scatter and an all-gather of it."""
    return 2 * (ranks - 1) / ranks * buffer if buffer > CONTROL else 0.0
