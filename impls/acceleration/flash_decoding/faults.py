"""Decoding with exactly one thing broken."""

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor

from harness.spec import Function, Topology, Workload
from harness.spec.fault import EXACT, OUTPUT, Fault
from impls.acceleration.flash_decoding import reference
from impls.acceleration.flash_decoding.grid import CACHE, SHARP


def splits_merged_alike(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The output is the mean of the splits' outputs that have keys: their log-sum-exps do not count."""
    right = reference.split_kv

    def mean(q: Tensor, cache: Mapping[str, Tensor], b: int, capacity: int, length: int) -> Tensor:
        parts, cut = [], [where for where in right_splits(capacity, length) if where.start < where.stop]
        for where in cut:
            reference.splits = lambda *sizes, where=where: iter([where])
            parts.append(right(q, cache, b, capacity, length))
        return torch.stack(parts).mean(0) if parts else torch.zeros_like(q)

    right_splits, reference.split_kv = reference.splits, mean
    return reference.build(workload, topology, **variant)


def the_last_split_is_left_out(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """A capacity that is no multiple of the number of splits is rounded down, so the last tokens are not read."""

    def rounded_down(capacity: int, length: int) -> Iterator[slice]:
        size = capacity // reference.C // 32 * 32
        return (slice(min(c * size, length), min((c + 1) * size, length)) for c in range(reference.C))

    reference.splits = rounded_down
    return reference.build(workload, topology, **variant)


def a_key_beyond_the_end(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Each sequence is taken to have one token more than it has."""
    decode = reference.build(workload, topology, **variant)
    return lambda inputs: decode(
        {**inputs, "lengths": (inputs["lengths"] + 1).clamp(max=workload.sequence_length).int()}
    )


def keys_of_another_head(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Query head i reads head i mod h_k of the cache, not i ÷ g."""
    decode, h_k = reference.build(workload, topology, **variant), workload.model.num_key_value_heads

    def strided(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        def turned(x: Tensor, groups: int) -> Tensor:
            return x.unflatten(2, (groups, -1)).transpose(2, 3).flatten(2, 3)

        query, group = inputs["query"], inputs["query"].shape[2] // h_k
        return {"output": turned(decode({**inputs, "query": turned(query, group)})["output"], h_k)}

    return strided


def pages_in_the_order_of_the_pool(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The block table is not consulted: a sequence is read from consecutive pages."""
    decode, pages = reference.build(workload, topology, **variant), ceil(workload.sequence_length / 256)

    def consecutive(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        table = torch.arange(workload.batch_size * pages, device=inputs["table"].device).view(-1, pages)
        return decode({**inputs, "table": table})

    return consecutive


def queries_from_the_top_left(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The first query sees the first key alone, the next one two, as if the cache were as long as the queries."""
    right = reference.scores

    def aligned(q: Tensor, k: Tensor, where: slice, length: int) -> Tensor:
        return right(q, k, where, min(length, q.shape[2]))

    reference.scores = aligned
    return reference.build(workload, topology, **variant)


def no_fallback(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Rows whose scores leave the range of the unified maximum keep what they have."""
    decode, right = reference.build(workload, topology, **variant), reference.split_kv

    def kept(q: Tensor, cache: Mapping[str, Tensor], b: int, capacity: int, length: int) -> Tensor:
        return torch.full_like(right(q, cache, b, capacity, length), torch.nan)

    reference.split_kv = kept
    return decode


def fallbacks_counted_by_sequence(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """A sequence counts once, however many of its rows fall back."""
    right = reference.unified_maximum

    def once(*arguments: Any) -> tuple[Tensor, int]:
        output, rows = right(*arguments)
        return output, min(rows, 1)

    reference.unified_maximum = once
    return reference.build(workload, topology, **variant)


def splits_that_are_kept(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The output is a part of the memory of all splits."""
    decode = reference.build(workload, topology, **variant)

    def part(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"output": torch.stack([decode(inputs)["output"]] * reference.C)[0]}

    return part


EVERYWHERE = {"fp32": OUTPUT, "bf16": OUTPUT}
NORM = {"fp32": frozenset({"output"}), "bf16": frozenset({"output"})}
FAULTS = {
    "splits_merged_alike": Fault("decode_split", "dp1", {"parity": NORM}, "output of output", CACHE),
    "the_last_split_is_left_out": Fault("decode_split", "dp1", {"parity": NORM}, "output of output", CACHE),
    "a_key_beyond_the_end": Fault("decode_split", "dp1", {"parity": NORM}, "output of output", CACHE),
    "keys_of_another_head": Fault("decode_few", "dp1", {"parity": EVERYWHERE}, "output of output", CACHE),
    "pages_in_the_order_of_the_pool": Fault("decode_paged", "dp1", {"parity": EVERYWHERE}, "output of output", CACHE),
    "queries_from_the_top_left": Fault("decode_few", "dp1", {"parity": NORM}, "output of output", CACHE),
    "no_fallback": Fault("decode_unified", "dp1", {"parity": {"fp32": NORM["fp32"]}}, "output of output", SHARP),
    "fallbacks_counted_by_sequence": Fault("decode_unified", "dp1", {"parity": {"fp32": EXACT}}, "fallbacks", SHARP),
    "splits_that_are_kept": Fault("decode_split", "dp1", {"memory": {"fp32": {"saved"}}}, workload=CACHE),
}
