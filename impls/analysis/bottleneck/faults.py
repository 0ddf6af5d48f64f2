"""Counts with exactly one thing wrong, each of which some published formula or counter has."""

from collections.abc import Callable, Mapping
from typing import Any

from harness.spec import Function, Topology, Workload
from harness.spec.fault import EXACT, Fault
from impls.analysis.bottleneck import reference

Sizes = Mapping[str, Any]
Counts = dict[str, int]


def _of(sizes: Callable[[Sizes], Sizes], workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The reference, given other sizes."""
    flops = reference.build(workload, topology, **variant)
    return lambda inputs: flops(sizes(inputs))


def _then(counts: Callable[[Counts], Counts], workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The reference, with other parts, whose sum is the total."""
    flops = reference.build(workload, topology, **variant)

    def altered(inputs: Sizes) -> Counts:
        found = counts({name: count for name, count in flops(inputs).items() if name != "total"})
        return {**found, "total": sum(found.values())}

    return altered


def multiply_adds_for_flops(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """A multiplication and an addition count as one."""
    return _then(lambda parts: {name: n // 2 for name, n in parts.items()}, workload, topology, **variant)


def no_head(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The product with the vocabulary is left out, as in 6N without embeddings."""
    return _then(lambda parts: {**parts, "head": 0}, workload, topology, **variant)


def a_key_for_each_query_head(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Keys and values have as many heads as queries, as in formulas that are older than grouped queries."""
    return _of(lambda x: {**x, "num_key_value_heads": x["num_attention_heads"]}, workload, topology, **variant)


def an_mlp_without_its_gate(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """SwiGLU's three matrices count as two."""
    return _of(lambda x: {**x, "mlp_matrices": 2}, workload, topology, **variant)


def every_expert_counted(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """A token counts as sent to all experts."""
    return _of(lambda x: {**x, "num_experts_per_tok": x["num_experts"]}, workload, topology, **variant)


def masked_pairs_counted(workload: Workload, topology: Topology, count: str, parts: bool) -> Function:
    """The causal count has every pair of query and key."""
    return reference.build(workload, topology, "whole", parts)


def a_backward_pass_of_one_product(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The backward pass costs as much as the forward pass: gradients of weights, but none of inputs."""
    return _then(lambda parts: {name: n * 2 // 3 for name, n in parts.items()}, workload, topology, **variant)


def recomputation_forgotten(workload: Workload, topology: Topology, count: str, parts: bool) -> Function:
    """Hardware FLOPs without the second forward pass."""
    return reference.build(workload, topology, "whole", parts)


def a_head_computed_again(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The second forward pass includes the head, so that every part counts four thirds."""
    return _then(lambda parts: {**parts, "head": parts["head"] * 4 // 3}, workload, topology, **variant)


def products_with_the_embedding(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The lookup of embeddings counts as a product, as if 6N had all parameters."""
    flops = reference.build(workload, topology, **variant)

    def looked_up(x: Sizes) -> Counts:
        table = 6 * x["batch_size"] * x["sequence_length"] * x["vocab_size"] * x["hidden_size"]
        return {"total": flops(x)["total"] + table}

    return looked_up


_FOUND = {"parity": {"fp32": EXACT}}

FAULTS = {
    "multiply_adds_for_flops": Fault("flops_whole", "dp1", _FOUND, where="head"),
    "no_head": Fault("flops_whole", "dp1", _FOUND, where="head"),
    "a_key_for_each_query_head": Fault("flops_whole", "dp1", _FOUND, where="projections"),
    "an_mlp_without_its_gate": Fault("flops_whole", "dp1", _FOUND, where="mlp"),
    "every_expert_counted": Fault("flops_whole", "dp1", _FOUND, where="mlp", workload="meshed_experts"),
    "masked_pairs_counted": Fault("flops_causal", "dp1", _FOUND, where="scores"),
    "a_backward_pass_of_one_product": Fault("flops_whole", "dp1", _FOUND, where="head"),
    "recomputation_forgotten": Fault("flops_recomputed", "dp1", _FOUND, where="mlp"),
    "a_head_computed_again": Fault("flops_recomputed", "dp1", _FOUND, where="head"),
    "products_with_the_embedding": Fault("flops_total", "dp1", _FOUND, where="total"),
}
