"""The promises of expert parallelism: rows that leave a rank, counted on the drawn tokens themselves."""

import functools

from harness.spec import Topology, Workload
from impls.parallelism.expert_parallel.problem import choose, draw, keep
from impls.parallelism.expert_parallel.router import Rule


@functools.cache
def rows(workload: Workload, topology: Topology, rule: Rule, **variant: object) -> list[list[int]]:
    """[dp][E]: the rows on each rank for each expert, without dropped ones."""
    inputs = draw(workload, **variant)
    chosen, gates = choose(inputs, rule)
    kept = keep(chosen, gates.detach(), rule)
    return [
        part[mask].bincount(minlength=rule.experts).tolist()
        for part, mask in zip(chosen.chunk(topology.dp), kept.chunk(topology.dp), strict=True)
    ]


def traffic(workload: Workload, topology: Topology, **variant: object) -> float | None:
    """Bytes that the busiest rank sends in a forward and backward pass. None for one rank.

    all-to-alls   2 (o + i) rows of h, and o + i gates in float32 or wider:  o rows leave for experts elsewhere
                  (tokens forward, gradients of y backward), i rows return to their origin
    counts        an all-gather of E int64 among the ep ranks, so that every rank knows its splits
    gradients     all-reduces in a ring: the router's over dp, the experts' over their dp/ep replicas
    load          if a loss or the bias depends on the whole batch: an all-reduce of E counts over dp
    cut experts   all-reduces over tp: of y forward, of the gradients of x and of the gates backward
    """
    rule, model, element = Rule(**variant), workload.model, workload.element_size  # type: ignore[arg-type]
    dp, ep, experts, h = topology.dp, topology.ep, rule.experts, workload.model.hidden_size
    tp, tokens = topology.tp, workload.tokens // dp
    if dp * tp == 1:
        return None
    table, local = rows(workload, topology, rule, **variant), experts // ep
    busiest = 0
    for rank in range(dp):
        first = rank - rank % ep
        mine = slice(rank % ep * local, (rank % ep + 1) * local)
        out = sum(table[rank]) - sum(table[rank][mine])
        back = sum(sum(table[other][mine]) for other in range(first, first + ep) if other != rank)
        busiest = max(busiest, out + back)
    gradients = _ring(experts * h * element, dp)
    gradients += _ring(local * 3 * h * model.intermediate_size // tp * element, dp // ep)
    cut = 2 * _ring(tokens * h * element, tp) + _ring(tokens * rule.k * max(4, element), tp)
    load = _ring(experts * 8, dp) if rule.auxiliary and not rule.capacity else 0.0
    load += _ring(experts * 4, dp) if rule.bias else 0.0
    return busiest * (2 * h * element + max(4, element)) + (ep - 1) * experts * 8 + gradients + load + cut


def saved(workload: Workload, topology: Topology, **variant: object) -> float:
    """Bytes that the busiest rank keeps between the forward and the backward pass, if each product keeps its factors:

        of its m rows       x (h), W_gate_up x (2f), silu(gate), p silu(gate), p silu(gate) up (f each; f/tp, if cut)
        of its t tokens     y (h), and x again in float32 for the router if x is narrower

    m is the number of received rows, not t k: experts are not chosen equally, and neither are ranks. Scores and indices
    are not counted.
    """
    rule, model, element = Rule(**variant), workload.model, workload.element_size  # type: ignore[arg-type]
    table, local = rows(workload, topology, rule, **variant), rule.experts // topology.ep
    busiest = max(
        sum(sum(table[other][rank * local : (rank + 1) * local]) for other in range(first, first + topology.ep))
        for rank in range(topology.ep)
        for first in range(0, topology.dp, topology.ep)
    )
    tokens = workload.tokens // topology.dp * model.hidden_size * (element + (4 if element < 4 else 0))
    return float(busiest * (model.hidden_size + 5 * model.intermediate_size // topology.tp) * element + tokens)


def _ring(buffer: float, ranks: int) -> float:
    return 2 * (ranks - 1) / ranks * buffer
