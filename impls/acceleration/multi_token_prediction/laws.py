"""The promises of multi-token prediction: a depth adds 2h² + 3h parameters and a layer, and shares embedding and head;
it costs a layer, a product by M_k and a head.

    Ψ, ψ parameters of the main model and of a depth   D depths   h hidden_size   t ranks of tp   n = b·s tokens of a
    micro-batch on a rank   e bytes of an element   w = max(4, e)
"""

from dataclasses import replace
from math import prod

from harness.spec import Topology, Workload
from impls.acceleration.multi_token_prediction.shapes import added
from impls.parallelism.context_parallel.laws import traffic as rings
from impls.parallelism.hybrid_3d.stage import LAYOUT, part_length
from impls.parallelism.sequence_parallel import laws as sequence_parallel_laws
from impls.parallelism.tensor_parallel.laws import MOMENTS, held, part, ring


def on_a_rank(workload: Workload, t: int, depth: int) -> float:
    """Parameters that a rank holds: a t-th of the layers' matrices; gains and M_k are whole."""
    more = added(workload.model, depth)
    return held(workload, t) + sum(prod(s) if n.endswith("eh_proj.weight") else part(n, s, t) for n, s in more)


def states(workload: Workload, topology: Topology, depth: int, **variant: object) -> float:
    """Bytes of weights, gradients, moments, and masters if the weights are narrower than float32: Ψ + D ψ parameters,
    where ψ has neither an embedding nor a head."""
    e = workload.element_size
    moments = MOMENTS[workload.optimizer] * (2 if e == 8 else 1)
    return on_a_rank(workload, topology.tp, depth) * (2 * e + (4 if e < 4 else 0) + moments)


def activations(
    workload: Workload, topology: Topology, depth: int, sequence_parallel: bool = False, **variant: object
) -> float:
    """Bytes that autograd saves of a micro-batch: those of the main model (sequence_parallel's law), and for each depth

    a layer and the norm before the head     as in the main model, with rotary tables of its own
    RMSNorm(h), RMSNorm(Emb)                 normalised input [h] and 1/rms [1] (w), and the input, except an h that
                                             the head has saved already
    M_k                                      both, joined [2h] (e)
    embedding and head                       as in the main model
    """
    model, t, e = workload.model, topology.tp, workload.element_size
    one = workload.with_(sequence_length=part_length(workload, topology.cp))
    place = Topology(dp=topology.dp, tp=t)
    main, deeper = (
        sequence_parallel_laws.activations(work, place, sequence_parallel)
        for work in (one, one.with_(model=replace(model, num_hidden_layers=model.num_hidden_layers + 1)))
    )
    layer, w, h = deeper - main, max(4, e), model.hidden_size
    b, s = workload.batch_size // topology.dp // workload.micro_batches, one.sequence_length
    between = b * (-(-s // t) if sequence_parallel else s)
    norm = 2 * h * w + w
    read = norm + h * e + norm + (norm - h * w if e == w else norm) + 2 * h * e  # before the head; the two; M_k's input
    vocabulary = b * s * (-(-model.vocab_size // t) * w + 2 * (8 + 1) + 1) + 8
    return main + depth * (layer + between * read + vocabulary + 2 * s * model.head_dim * e)


def traffic(
    workload: Workload, topology: Topology, depth: int, sequence_parallel: bool = False, **variant: object
) -> float | None:
    """Bytes that a rank sends in a step, for each micro-batch n·h elements of

        tp    all-reduces: 4 a layer, also a depth's; 1 each of the embedding and the head, for the main model and each
              depth; the cross-entropies' statistics; with sequence parallelism half an all-reduce more for each gather
              that is done again (2 a layer, 1 of a head)
        cp    the layers' attention goes round the ring, also the depths'

    and once a step the gradients of the gains over tp (with sequence parallelism of M_k too), and of all that a rank
    holds over dp × cp. The numbers of tokens are a few bytes. None for one rank.
    """
    model, t, e = workload.model, topology.tp, workload.element_size
    if topology.world_size == 1:
        return None
    b, s = workload.batch_size // topology.dp // workload.micro_batches, part_length(workload, topology.cp)
    layers, again = model.num_hidden_layers + depth, 0.5 if sequence_parallel else 0.0
    n = b * model.hidden_size * e * (t * -(-s // t) if sequence_parallel else s)
    sums = layers * (4 + 2 * again) + (1 + depth) * (2 + again)
    statistics = ring(b * s * max(4, e), t) + ring(2 * b * s * max(4, e), t)
    around = (rings(workload.with_(batch_size=b, unlabelled=0), Topology(cp=topology.cp), LAYOUT) or 0.0) / t
    step = sums * ring(n, t) + (1 + depth) * statistics + layers * around
    gains = layers * 2 * model.head_dim * model.qk_norm
    if sequence_parallel:
        h = model.hidden_size
        gains += layers * (2 + model.o_bias + model.mlp_bias) * h + h + depth * (3 * h + 2 * h * h)
    once = ring(gains * e, t) + ring(on_a_rank(workload, t, depth) * e, topology.dp * topology.cp)
    return workload.micro_batches * step + once


def flops(workload: Workload, depth: int, **variant: object) -> float:
    """FLOPs that the depths add to a step, forward and backward: 6 for each token with a target in the sequence, T − k,
    and each parameter of M_k, of the layer's matrices and of the shared head; and 6 (T − k)² for each column of the
    queries (12 without causality)."""
    model = workload.model
    products = sum(prod(shape) for _, shape in added(model, 1) if len(shape) > 1) + model.vocab_size * model.hidden_size
    width = model.num_attention_heads * model.head_dim
    lengths = [max(workload.sequence_length - k, 0) for k in range(1, depth + 1)]
    return float(sum(6 * workload.batch_size * s * (products + width * s) for s in lengths))
