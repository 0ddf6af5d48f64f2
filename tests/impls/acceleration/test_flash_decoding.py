"""Decoding: any lengths and splits, empty sequences, the unified maximum and its fallback, pages, claims."""

import importlib
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.judge.parity import MARGIN
from harness.spec import ModelConfig, Topology, Workload
from impls.acceleration.flash_decoding import CARD, claims, laws, on_flex, problem, reference
from impls.acceleration.flash_decoding.grid import CACHE, SHARP
from impls.acceleration.flash_decoding.sizes import lengths, seen
from tests.impls.oracle import DTYPES, cast

HERE = Topology()
SPLIT, FEW, UNIFIED, PAGED = (
    CARD.variants[name] for name in ("decode_split", "decode_few", "decode_unified", "decode_paged")
)


def work(capacity: int = 70, kv_heads: int = 2, group: int = 3, half: int = 4, batch: int = 5) -> Workload:
    model = ModelConfig(num_attention_heads=kv_heads * group, num_key_value_heads=kv_heads, head_dim=2 * half)
    return Workload("drawn", model, batch_size=batch, sequence_length=capacity, dtype="fp64")


def decoded(inputs: dict[str, Tensor], workload: Workload, **variant: Any) -> tuple[Any, Any]:
    """The reference's and the formula's."""
    return reference.build(workload, HERE, **variant)(inputs), problem.plain(inputs, **variant)


@settings(derandomize=True, max_examples=40)
@given(
    variant=st.sampled_from(list(CARD.variants.values())),
    capacity=st.integers(1, 300),
    count=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_reference_is_attention_for_any_lengths_and_splits(
    variant: dict[str, Any], capacity: int, count: int, kv_heads: int, group: int, seed: int
) -> None:
    workload = work(capacity, kv_heads, group).with_(seed=seed)
    with patch.object(reference, "C", count):
        found, exact = decoded(problem.draw(workload, **variant), workload, **variant)
    torch.testing.assert_close(found["output"], exact["output"], rtol=0, atol=1e-12)
    assert found.get("fallbacks") == exact.get("fallbacks")


def with_lengths(inputs: dict[str, Tensor], *each: int) -> dict[str, Tensor]:
    return {**inputs, "lengths": torch.tensor(each, dtype=torch.int32)}


@pytest.mark.parametrize("variant", CARD.variants)
def test_a_sequence_without_tokens_gives_zero_and_one_of_a_single_token_its_value(variant: str) -> None:
    options = CARD.variants[variant]
    inputs = with_lengths(problem.draw(work(), **options), 0, 1, 0, 1, 2)
    output = reference.build(work(), HERE, **options)(inputs)["output"]
    assert (output[[0, 2]] == 0).all()
    assert (output[1, :-1] == 0).all()  # earlier queries than the first token's
    value = inputs["value"] if "table" not in inputs else inputs["value"][inputs["table"][:, 0].long()]
    torch.testing.assert_close(output[1, -1], value[1, 0].repeat_interleave(3, 0))


@pytest.mark.parametrize("variant", ["decode_split", "decode_unified"])
def test_what_the_cache_holds_beyond_the_end_does_not_matter_even_if_it_is_nan(variant: str) -> None:
    options = CARD.variants[variant]
    inputs = problem.draw(work(), **options)
    right = reference.build(work(), HERE, **options)(inputs)["output"]
    beyond = torch.arange(70) >= inputs["lengths"][:, None]
    assert beyond.any()
    for name in ("key", "value"):
        inputs[name][beyond] = torch.nan
    assert torch.equal(reference.build(work(), HERE, **options)(inputs)["output"], right)


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_splits_cover_each_position_once_and_those_of_a_short_sequence_are_empty(capacity: int, count: int) -> None:
    with patch.object(reference, "C", count):
        for length in {0, 1, capacity // 3, capacity}:
            cut = list(reference.splits(capacity, length))
            assert len(cut) == count
            assert [i for where in cut for i in range(where.start, where.stop)] == list(range(length))


def test_scores_of_ten_thousand_are_decoded_and_all_rows_fall_back() -> None:
    inputs = cast(problem.draw(SHARP, **UNIFIED), torch.float32)
    _, _, h, d = inputs["query"].shape
    scores = inputs["query"][0, 0] @ inputs["key"][0, :, 0].mT / d**0.5
    assert scores.abs().max() > 1e4
    found, exact = decoded(inputs, SHARP, **UNIFIED)
    assert found["fallbacks"] == exact["fallbacks"] == h * sum(length > 0 for length in lengths(SHARP))
    exact = problem.plain(cast(inputs, torch.float64), **UNIFIED)["output"]
    naive = problem.plain(inputs, **UNIFIED)["output"]
    assert (found["output"] - exact).norm() <= MARGIN * (naive - exact).norm()


def test_normal_scores_never_fall_back() -> None:
    found, _ = decoded(problem.draw(CACHE, **UNIFIED), CACHE, **UNIFIED)
    assert found["fallbacks"] == 0


@pytest.mark.parametrize("edge", [problem.A, problem.B])
def test_one_score_at_the_edge_of_the_range_sends_its_own_row_to_the_fallback(edge: float) -> None:
    workload = work(batch=1)
    inputs = problem.draw(workload, **UNIFIED)
    key, query = inputs["key"], inputs["query"]
    key[0, 65, 0] = query[0, 0, 1] / query[0, 0, 1].square().sum() * 8**0.5 * edge * (1 + 1e-9)
    calls = []
    right = reference.split_kv
    with patch.object(reference, "split_kv", lambda *arguments: (calls.append(1), right(*arguments))[1]):
        found, exact = decoded(inputs, workload, **UNIFIED)
    inside = exact["fallbacks"]
    assert found["fallbacks"] == inside >= 1
    assert len(calls) == 1
    key[0, 65, 0] *= 1 - 1e-6
    assert decoded(inputs, workload, **UNIFIED)[0]["fallbacks"] == inside - 1


def test_pages_hold_the_same_cache_in_another_order() -> None:
    workload = work(capacity=600)
    whole, paged = (problem.draw(workload, **variant) for variant in (SPLIT, PAGED))
    assert paged["table"].flatten().tolist() != list(range(paged["table"].numel()))
    for b, length in enumerate(lengths(workload)):
        read = reference.read(paged, "key", b, slice(0, length))
        assert torch.equal(read, whole["key"][b, :length].transpose(0, 1))
    found, exact = (reference.build(workload, HERE, **v)(x)["output"] for v, x in ((PAGED, paged), (SPLIT, whole)))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ["sdpa_math", "sdpa_flash"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["decode_split", "decode_few"])
def test_sdpa_errs_no_more_than_the_formula(variant: str, dtype: str, engine: str) -> None:
    module, _, name = CARD.engines[engine].build.partition(":")
    options, workload = CARD.variants[variant], work().with_(dtype=dtype)
    inputs = cast(problem.draw(workload, **options), DTYPES[dtype])
    found = getattr(importlib.import_module(module), name)(workload, HERE, **options)(inputs)["output"]
    naive = problem.plain(inputs, **options)["output"]
    exact = problem.plain(cast(inputs, torch.float64), **options)["output"]
    assert (found - exact).norm() <= MARGIN * (naive - exact).norm()


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*:UserWarning")
@pytest.mark.parametrize("variant", ["decode_split", "decode_few"])
def test_flex_attention_computes_the_same(variant: str) -> None:
    options, workload = CARD.variants[variant], work().with_(dtype="fp32")
    inputs = cast(problem.draw(workload, **options), torch.float32)
    with patch.object(torch, "compile", lambda function, **how: function):
        found = on_flex.build(workload, HERE, **options)(inputs)["output"]
    naive = problem.plain(inputs, **options)["output"]
    exact = problem.plain(cast(inputs, torch.float64), **options)["output"]
    assert (found - exact).norm() <= MARGIN * (naive - exact).norm()


@pytest.mark.parametrize("batch", range(1, 6))
def test_lengths_begin_with_the_cases_that_are_easily_missed(batch: int) -> None:
    found = lengths(work(batch=batch))
    assert found[:3] == [70, 1, 0][:batch]
    assert len(found) == batch
    assert all(0 <= length <= 70 for length in found)
    assert found == lengths(work(batch=batch).with_(seed=1))  # all inputs are the same amount of work


def test_flops_count_what_each_query_sees() -> None:
    visible = problem.mask(torch.tensor(lengths(work())), 4, 70)
    assert sum(seen(length, 4) for length in lengths(work())) == int(visible.sum())
    assert laws.flops(work(), **FEW) == 4 * int(visible.sum()) * 6 * 8


@pytest.mark.parametrize("name", [claim.name for claim in CARD.claims])
def test_claim_gives_a_measurement_of_its_own_name(name: str) -> None:
    (claim,) = (claim for claim in CARD.claims if claim.name == name)
    measurement = getattr(claims, claim.check.partition(":")[2])([])
    assert (measurement.measure, measurement.quantity) == ("claim", name)
    assert measurement.detail["status"] in ("reproduced", "out of reach here")
    assert measurement.detail["arithmetic"]


def test_a_cache_that_is_read_twice_contradicts_the_claim() -> None:
    once = reference.split_kv
    with patch.object(reference, "split_kv", lambda *arguments: (once(*arguments), once(*arguments))[0]):
        twice = claims.bytes_read([])
    assert (twice.detail["status"], twice.value) == ("contradicted", 2 * twice.law)


def test_an_error_above_twice_the_formula_s_contradicts_the_claim() -> None:
    right = reference.weighed
    with patch.object(reference, "weighed", lambda p, v: right(p.bfloat16().float(), v)):
        assert claims.error([]).detail["status"] == "contradicted"
