"""Grouped products: every layout on odd sizes, rows that must not matter, Triton's kernels, claims."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.judge.parity import MARGIN
from harness.meter.flops import step_flops
from harness.spec import MoeConfig, Topology, Unsupported, Workload
from harness.spec.named import NAMED
from impls.acceleration.grouped_gemm import CARD, claims, laws, on_torch, problem, reference
from impls.acceleration.grouped_gemm.sizes import BLOCK, Sizes, sizes
from tests.impls.oracle import cast, error_over_plain, same_in_float64

ROOT, HERE = Path(__file__).parents[3], Topology()
UNSCALED = [name for name, variant in CARD.variants.items() if not variant["scaled"]]
SCALED = [name for name, variant in CARD.variants.items() if variant["scaled"]]


def work(dtype: str = "fp64", k: int = 150, half_n: int = 70, experts: int = 3, tokens: int = 23) -> Workload:
    model = MoeConfig(hidden_size=k, moe_intermediate_size=half_n, num_experts=experts, num_experts_per_tok=2)
    return Workload("drawn", model, batch_size=1, sequence_length=tokens, dtype=dtype)


def outputs(workload: Workload, variant: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The reference's, its inputs' type, and the formula's in float64."""
    options = CARD.variants[variant]
    inputs = problem.draw(workload, **options)
    return (
        reference.build(workload, HERE, **options)(inputs)["y"],
        inputs["sizes"],
        problem.plain(inputs, **options)["y"],
    )


@settings(derandomize=True, max_examples=15)
@given(
    variant=st.sampled_from(list(CARD.variants)),
    k=st.integers(1, 300),
    half_n=st.integers(1, 150),
    experts=st.integers(2, 5),
    tokens=st.integers(3, 200),
)
def test_reference_is_the_formula_for_any_sizes(variant: str, k: int, half_n: int, experts: int, tokens: int) -> None:
    workload, options = work("fp64", k, half_n, experts, tokens), CARD.variants[variant]
    if options["scaled"]:
        found, _, exact = outputs(workload, variant)
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-10)
    else:
        assert same_in_float64(reference.build(workload, HERE, **options), problem, workload, **options)


@pytest.mark.parametrize("layout", ["dense", "contiguous", "masked"])
def test_the_naive_form_launches_one_product_a_group_and_gives_the_same(layout: str) -> None:
    inputs = problem.draw(work(), layout=layout, scaled=False)
    rows = problem.groups(inputs, layout)
    flat = inputs["x"].detach().flatten(0, -2)
    found = reference.naive(flat, inputs["w"].detach(), rows)
    tiled = reference.GroupedProduct.apply(flat, inputs["w"].detach(), rows)
    torch.testing.assert_close(found, tiled, rtol=0, atol=1e-12)
    assert len(rows) == 3


@pytest.mark.parametrize("variant", ["grouped_masked", "grouped_masked_scaled"])
def test_rows_beyond_a_group_s_size_do_not_matter_even_if_they_are_nan(variant: str) -> None:
    options = CARD.variants[variant]
    inputs = problem.draw(work(), **options)
    beyond = torch.arange(inputs["x"].shape[1]) >= inputs["sizes"][:, None]
    x = inputs["x"].view(problem.E4M3).float() if options["scaled"] else inputs["x"]
    assert beyond.any()
    assert x[beyond].isnan().all()
    y = reference.build(work(), HERE, **options)(inputs)["y"]
    assert not y.isnan().any()
    assert (y[beyond] == 0).all()
    if not options["scaled"]:
        dx, dw = torch.autograd.grad(y.sum(), (inputs["x"], inputs["w"]))
        assert (dx[beyond] == 0).all()
        assert not dw.isnan().any()


def test_a_group_without_rows_has_a_gradient_of_zero() -> None:
    inputs = problem.draw(work(), layout="contiguous", scaled=False)
    (empty,) = (g for g, size in enumerate(inputs["sizes"].tolist()) if size == 0)
    y = reference.build(work(), HERE, layout="contiguous", scaled=False)(inputs)["y"]
    (dw,) = torch.autograd.grad(y.sum(), inputs["w"])
    assert (dw[empty] == 0).all()
    assert (dw != 0).flatten(1).any(1).sum() == len(dw) - 1


@settings(derandomize=True)
@given(experts=st.integers(2, 16), tokens=st.integers(8, 4096))
def test_groups_hold_all_rows_and_one_has_none(experts: int, tokens: int) -> None:
    workload = work(experts=experts, tokens=tokens)
    dense, contiguous, masked = (sizes(workload, layout) for layout in ("dense", "contiguous", "masked"))
    assert len(set(dense.rows)) == 1
    assert dense.held == sum(dense.rows) <= 2 * tokens < sum(dense.rows) + experts
    assert sum(contiguous.rows) == contiguous.held == 2 * tokens
    assert min(contiguous.rows) == contiguous.rows[experts // 2] == 0
    assert masked.held == experts * masked.capacity
    assert 0 == masked.rows[experts // 2] <= max(masked.rows) == masked.capacity


@pytest.mark.parametrize("layout", ["dense", "contiguous", "masked"])
def test_all_inputs_are_the_same_amount_of_work(layout: str) -> None:
    assert sizes(work(), layout) == sizes(work().with_(seed=1), layout)


def test_flops_are_those_of_the_valid_rows() -> None:
    with patch.object(laws, "sizes", lambda workload, layout: Sizes((3, 0, 5), 9, 7, 11)):
        assert laws.flops(work(), layout="masked", scaled=True) == 2 * 8 * 7 * 11
        assert laws.flops(work(), layout="masked", scaled=False) == 3 * 2 * 8 * 7 * 11
        assert laws.saved(work("bf16"), HERE, layout="masked", scaled=False) == 3 * 9 * 7 * 2


def test_the_large_work_has_the_shapes_of_deepseek_v3() -> None:
    large = NAMED["deepseek_v3_experts"]
    size = sizes(large, "dense")
    assert (size.rows, size.n, size.k) == ((2048,) * 4, 2 * 2048, 7168)
    assert laws.flops(large, layout="dense", scaled=False) < step_flops(large)


@pytest.mark.parametrize("height", [1, BLOCK])
def test_quantised_blocks_use_the_whole_range_and_their_scales_are_exact_in_bfloat16(height: int) -> None:
    x = torch.randn(2, 200, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bits, scale = problem.quantised(x, height)
    assert torch.equal(scale, scale.to(torch.bfloat16).double())
    assert scale.shape == (2, -(-200 // height), 3)
    found = bits.view(problem.E4M3).double() * problem.spread(scale, height, x.shape)
    smallest = problem.spread(scale, height, x.shape) * 2**-6  # with all of its three bits after the first
    assert ((found - x).abs() <= torch.maximum(x.abs(), smallest) / 16 * (1 + 1e-9)).all()
    assert bits.view(problem.E4M3).float().abs().max() == problem.LARGEST


@pytest.mark.parametrize("variant", ["grouped_dense", "grouped_contiguous"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_grouped_mm_errs_no_more_than_the_formula(dtype: str, variant: str) -> None:
    workload, options = work(dtype, k=144, half_n=72), CARD.variants[variant]
    built = on_torch.build(workload, HERE, **options)
    assert error_over_plain(built, problem, workload, **options) <= MARGIN


def test_grouped_mm_lacks_float64_and_rows_of_odd_sizes() -> None:
    with pytest.raises(Unsupported, match="not float64"):
        on_torch.build(work("fp64"), HERE, layout="dense", scaled=False)
    with pytest.raises(Unsupported, match="multiple of 16 bytes, not n = 140, k = 150"):
        on_torch.build(work("bf16"), HERE, layout="dense", scaled=False)


INTERPRETED = """
import json, torch
from harness.spec import MoeConfig, Topology, Workload
from impls.acceleration.grouped_gemm import CARD, on_triton, problem
from tests.impls.acceleration.test_grouped_gemm import work
from tests.impls.oracle import cast, error_over_plain

found = {}
for name, variant in CARD.variants.items():
    small = work("fp32")
    built = on_triton.build(small, Topology(), **variant)
    if variant["scaled"]:
        inputs = cast(problem.draw(small, **variant), torch.float32)
        exact = problem.plain(cast(inputs, torch.float64), **variant)["y"]
        ours, theirs = (function(inputs)["y"] - exact for function in (built, lambda x: problem.plain(x, **variant)))
        found[name] = float(ours.norm() / theirs.norm())
    else:
        found[name] = error_over_plain(built, problem, small, **variant)
print(json.dumps(found))
"""


def test_triton_s_kernels_err_no_more_than_the_formula() -> None:
    """In Triton's interpreter, which must be chosen before Triton is imported."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == CARD.variants.keys()
    assert all(ratio <= MARGIN for ratio in found.values()), found


def test_fourteen_bits_are_kept_by_rounding_down() -> None:
    unit = 2.0**-13  # of numbers from 1 to below 2
    one = torch.tensor([1.0, 1 + 1.9 * unit, -0.1 * unit, 0.9 * unit], dtype=torch.float64)
    assert claims.kept(one, one.abs().max()).tolist() == [1.0, 1 + unit, -unit, 0.0]


def test_accumulation_with_more_bits_or_promotion_is_more_exact() -> None:
    x, w, exact = claims._drawn()
    errors = [claims._error(claims.accumulated(x[:4], w[:4], each), exact[:4, :4]) for each in (0, 1024, BLOCK)]
    assert errors == sorted(errors, reverse=True)
    with patch.object(claims, "BITS", 40):
        assert claims._error(claims.accumulated(x[:4], w[:4]), exact[:4, :4]) < errors[-1] / 1000


@pytest.mark.parametrize("name", [claim.name for claim in CARD.claims])
def test_claim_gives_a_measurement_of_its_own_name(name: str) -> None:
    (claim,) = (claim for claim in CARD.claims if claim.name == name)
    measurement = getattr(claims, claim.check.partition(":")[2])([])
    assert (measurement.measure, measurement.quantity) == ("claim", name)
    assert measurement.detail["status"] in ("reproduced", "formula only", "out of reach here")
    assert measurement.detail["arithmetic"]


def test_the_share_of_the_ceiling_is_told_from_the_run_s_own_records() -> None:
    timed = {"measure": "throughput", "variant": "grouped_dense", "engine": "torch", "detail": {"mfu": 0.75}}
    assert "grouped_dense torch 75%" in claims.ceiling([timed, {**timed, "detail": {"mfu": None}}]).reason
    assert "none was timed" in claims.ceiling([]).reason


@pytest.mark.parametrize("variant", SCALED)
def test_bits_are_the_same_in_every_precision(variant: str) -> None:
    inputs = problem.draw(work(), **CARD.variants[variant])
    narrow = cast(inputs, torch.bfloat16)
    assert inputs["x"].dtype == inputs["w"].dtype == torch.uint8
    assert all(torch.equal(narrow[name].double().nan_to_num(), x.double().nan_to_num()) for name, x in inputs.items())
