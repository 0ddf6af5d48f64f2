"""FlashAttention's reference and the SDPA back ends against naive attention in float64."""

import importlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from harness.spec import Function, ModelConfig, Topology, Unsupported, Workload
from impls.acceleration.flash_attention import (
    CARD,
    claims,
    fa1,
    laws,
    on_flex,
    on_torch,
    problem,
    reference,
    tiles,
)
from impls.acceleration.flash_attention.rules import Rules
from tests.impls.oracle import cast, computed, distance, drawn, error_over_plain, plainly, same_in_float64, with_fault

LAW = 2.0  # times the error of naive attention
HERE = Topology()
SMALL = {"B_R": 48, "B_C": 20}
VARIANTS = dict(CARD.variants)
RUN_HERE = [
    (engine, variant)
    for engine in ("reference", "sdpa_math", "sdpa_flash", "transformers")
    for variant in CARD.engines[engine].variants or VARIANTS
]


@pytest.fixture
def small_tiles() -> Iterator[None]:
    """Even short sequences take several tiles, and m follows the maximum."""
    with patch.multiple(reference, **SMALL), patch.multiple(fa1, **SMALL):
        yield


def work(dtype: str = "fp32", length: int = 70, heads: int = 4, kv_heads: int = 2, dim: int = 8) -> Workload:
    model = ModelConfig(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=dim)
    return Workload(model=model, batch_size=2, sequence_length=length, dtype=dtype)


def over_naive(build: Any, workload: Workload, **variant: Any) -> float:
    return error_over_plain(build(workload, HERE, **variant), problem, workload, **variant)


@settings(derandomize=True, max_examples=40)
@given(
    length=st.integers(1, 100),
    keys=st.sampled_from([0.5, 0.9, 1.0, 1.3, 3.0]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    half_dim=st.integers(1, 8),
    causal=st.booleans(),
    window=st.sampled_from([0, 1, 7, 25, 60]),
    bottom_right=st.booleans(),
    softcap=st.sampled_from([0.0, 2.0]),
    sinks=st.booleans(),
)
def test_reference_is_attention_for_any_shape_and_rule(
    length: int, keys: float, kv_heads: int, group: int, half_dim: int, **variant: Any
) -> None:
    variant["keys"] = max(keys, 1 / length)
    workload = work("fp64", length, kv_heads * group, kv_heads, 2 * half_dim)
    with patch.multiple(reference, **SMALL):
        assert same_in_float64(reference.build(workload, HERE, **variant), problem, workload, **variant)


@settings(derandomize=True, max_examples=20)
@given(length=st.integers(1, 100), group=st.integers(1, 3), causal=st.booleans())
def test_the_first_loop_order_is_attention_for_any_length(length: int, group: int, causal: bool) -> None:
    workload, variant = work("fp64", length, group, 1), {"outer": "keys", "causal": causal}
    with patch.multiple(fa1, **SMALL):
        assert same_in_float64(reference.build(workload, HERE, **variant), problem, workload, **variant)


@pytest.mark.parametrize(("engine", "variant"), RUN_HERE)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_engine_errs_at_most_twice_as_much_as_naive_attention(engine: str, variant: str, dtype: str) -> None:
    module, _, name = CARD.engines[engine].build.partition(":")
    build = getattr(importlib.import_module(module), name)
    assert over_naive(build, work(dtype, 150), **VARIANTS[variant]) <= LAW


@pytest.mark.parametrize(("dim", "heads", "kv_heads"), [(64, 4, 2), (128, 2, 2), (256, 4, 1)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_reference_takes_the_widths_of_kernels_with_grouped_single_and_equal_heads(
    dtype: str, dim: int, heads: int, kv_heads: int
) -> None:
    workload = work(dtype, 140, heads, kv_heads, dim)
    assert over_naive(reference.build, workload, causal=True) <= LAW
    assert over_naive(reference.build, workload, causal=True, outer="keys") <= LAW


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_more_tiles_do_not_cost_precision(dtype: str, variant: str) -> None:
    assert over_naive(reference.build, work(dtype, length=333), **VARIANTS[variant]) <= LAW


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_equals_finite_differences(variant: str) -> None:
    workload = work("fp64", length=35, heads=2, kv_heads=1, dim=2).with_(batch_size=1)
    drawn_here = drawn(problem, workload, **VARIANTS[variant])
    leaves = {name: x for name, x in drawn_here.items() if x.requires_grad}
    attention = reference.build(workload, HERE, **VARIANTS[variant])

    def output(*tensors: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = attention(drawn_here | dict(zip(leaves, tensors, strict=True)))["output"]
        return found

    assert torch.autograd.gradcheck(output, tuple(leaves.values()), fast_mode=True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("engine", [reference.build, on_torch.build_math, on_torch.build_flash])
def test_rows_that_see_nothing_have_output_and_gradient_zero(engine: Any) -> None:
    variant = VARIANTS["fa2_unseen"]
    found = computed(engine(work(length=100), HERE, **variant), drawn(problem, work(length=100), **variant))
    assert all(x.isfinite().all() for x in found.values())
    assert not found["output"][:, :, :30].any()
    assert found["output"][:, :, 30:].all()
    assert not found["d_query"][:, :, :30].any()
    assert found["d_query"][:, :, 31:].all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sum_of_scores_beyond_exp_s_range_is_no_nan(variant: str) -> None:
    workload = work("fp64", 100).with_(input_scale=60.0)  # scores up to 1e4, of which one wins
    inputs = drawn(problem, workload, **VARIANTS[variant])
    scores = inputs["query"][0, 0] @ inputs["key"][0, 0].T * 8**-0.5
    assert scores.max() > 1e4
    exact = plainly(problem, inputs, **VARIANTS[variant])
    assert distance(computed(reference.build(workload, HERE, **VARIANTS[variant]), inputs), exact) < 1e-9
    narrow = computed(reference.build(workload, HERE, **VARIANTS[variant]), cast(inputs, torch.float32))
    assert all(x.isfinite().all() for x in narrow.values())


def test_a_window_or_a_document_without_a_tile_in_front_is_skipped() -> None:
    mask = Rules(causal=True, window=10).mask(100, 100)
    tiles = [(rows, columns) for rows in tiles_of(100, 20) for columns in tiles_of(100, 20)]
    seen = mask.seen(torch.arange(100), torch.arange(100))
    for rows, columns in tiles:
        assert mask.hides(rows, columns) == (not seen[rows, columns].any())
        assert mask.shows(rows, columns) == bool(seen[rows, columns].all())
    assert 0 < sum(mask.hides(*tile) for tile in tiles) < len(tiles)


def tiles_of(length: int, size: int) -> list[slice]:
    return list(tiles.blocks(length, size))


FAULTS = {
    "softmax scale missing": ("rules.capped(tau * q_i @ k_j.mT), rows", "rules.capped(q_i @ k_j.mT), rows"),
    "sum not rescaled": ("(m_before - m).exp() * l_i", "l_i"),
    "output not rescaled": ("(m_before - m).exp() * o_i", "o_i"),
    "keys of another head": ("(query, output, logsumexp))", "(query.flip(1), output, logsumexp))"),
    "backward: one block of rows too few": (
        "for rows in blocks(q.shape[-2], B_R):  # 8",
        "for rows in list(blocks(q.shape[-2], B_R))[1:]:",
    ),
    "backward: D missing": ("p_ij * (dp_ij - d_i)", "p_ij * dp_ij"),
    "backward: scale missing in dQ": ("+ tau * ds_ij @ k_j", "+ ds_ij @ k_j"),
    "backward: scale missing in dK": ("tau * ds_ij.mT", "ds_ij.mT"),
    "backward: the sink's gradient has the other sign": ("-(p * row_products", "(p * row_products"),
    "backward: the cap has no slope": (" * rules.slope(s_ij)", ""),
}
EVERYTHING = {"causal": True, "window": 30, "softcap": 2.0, "sinks": True, "keys": 1.5, "bottom_right": True}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_exceeds_the_law(fault: str) -> None:
    faulty = with_fault(reference, *FAULTS[fault])
    vars(faulty).update(SMALL)
    assert not same_in_float64(faulty.build(work(), HERE, **EVERYTHING), problem, work(), **EVERYTHING)
    assert over_naive(faulty.build, work(), **EVERYTHING) > LAW


@pytest.mark.parametrize("variant", ["fa1", "fa2", "fa2_causal"])
@pytest.mark.parametrize("rise", [5.0, 40.0, 400.0])  # the last exceeds float32's range
def test_scores_may_rise_from_tile_to_tile(rise: float, variant: str) -> None:
    options = VARIANTS[variant]
    inputs = drawn(problem, work(length=333), **options)
    inputs["query"].detach()[..., 0] = 8**0.5
    inputs["key"].detach()[..., 0] = torch.linspace(0, rise, 333)
    exact = plainly(problem, cast(inputs, torch.float64), **options)
    assert distance(computed(reference.build(work(length=333), HERE, **options), inputs), exact) < 1e-4


@pytest.mark.parametrize("causal", [False, True])
def test_inputs_are_left_as_they_are(causal: bool) -> None:
    inputs = drawn(problem, work(), causal=causal)
    before = {name: x.detach().clone() for name, x in inputs.items()}
    computed(reference.build(work(), HERE, causal=causal), inputs)
    assert all(torch.equal(x, before[name]) for name, x in inputs.items())


def saved_bytes(function: Function, inputs: dict[str, torch.Tensor]) -> int:
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    alive = []
    with saved_tensors_hooks(lambda x: (alive.append(x), keep(x))[1], lambda x: x):
        keep(function(inputs)["output"])
    return sum(kept[address] for address in kept.keys() - {x.data_ptr() for x in inputs.values()})


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("length", [33, 200])
def test_reference_and_flash_keep_what_the_law_says_and_math_keeps_more(length: int, dtype: str) -> None:
    workload = work(dtype, length)
    inputs, law = drawn(problem, workload, causal=True), laws.saved(workload, HERE, causal=True)
    assert saved_bytes(reference.build(workload, HERE, causal=True), inputs) == law
    assert saved_bytes(on_torch.build_flash(workload, HERE, causal=True), inputs) == law
    assert saved_bytes(on_torch.build_math(workload, HERE, causal=True), inputs) > law + length**2


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_each_back_end_runs_its_own_kernel() -> None:
    inputs, flash, math = drawn(problem, work(), causal=True), Operators(), Operators()
    with flash:
        on_torch.build_flash(work(), HERE, causal=True)(inputs)
    with math:
        on_torch.build_math(work(), HERE, causal=True)(inputs)
    assert "aten._scaled_dot_product_flash_attention_for_cpu.default" in flash.seen
    assert "aten._safe_softmax.default" in math.seen
    assert not any("flash" in operator for operator in math.seen)


@pytest.mark.parametrize("build", [on_torch.build_efficient, on_torch.build_cudnn])
def test_back_end_without_a_kernel_here_raises_instead_of_falling_back(build: Any) -> None:
    with pytest.raises(RuntimeError, match="No viable backend"):
        build(work(), HERE, causal=True)(drawn(problem, work(), causal=True))


@pytest.mark.parametrize("build", [on_torch.build_flash, on_torch.build_cudnn])
def test_dtype_that_a_cuda_kernel_lacks_is_unsupported(build: Any) -> None:
    with FakeTensorMode():
        inputs = {name: torch.empty(1, 2, 8, 8, device="cuda") for name in ("query", "key", "value")}
        with pytest.raises(Unsupported, match=r"takes torch.bfloat16, not torch.float32"):
            build(work(), HERE, causal=True)(inputs)


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*:UserWarning")
@pytest.mark.parametrize("variant", CARD.engines["flex"].variants)
def test_flex_computes_the_same_forward(variant: str) -> None:
    options = VARIANTS[variant]
    inputs = {name: x.detach() for name, x in drawn(problem, work(), **options).items()}
    with patch.object(torch, "compile", lambda function, **options: function):
        output = on_flex.build(work(), HERE, **options)(inputs)["output"]
    exact = problem.plain(cast(inputs, torch.float64), **options)["output"]
    naive = problem.plain(inputs, **options)["output"]
    assert (output - exact).norm() <= LAW * (naive - exact).norm()


@pytest.mark.parametrize(
    ("engine", "variant"),
    [("sdpa_flash", "fa2_softcap"), ("sdpa_math", "fa2_sinks")],
)
def test_an_engine_says_what_it_lacks(engine: str, variant: str) -> None:
    module, _, name = CARD.engines[engine].build.partition(":")
    with pytest.raises(Unsupported, match="neither capped scores nor sinks"):
        getattr(importlib.import_module(module), name)(work(), HERE, **VARIANTS[variant])


def test_draw_depends_on_the_seed_alone() -> None:
    one, two, other = (problem.draw(work().with_(seed=seed), causal=False) for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) and not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", [claim.name for claim in CARD.claims])
def test_claim_gives_a_measurement_of_its_own_name(name: str) -> None:
    (claim,) = (claim for claim in CARD.claims if claim.name == name)
    measurement = getattr(claims, claim.check.partition(":")[2])([])
    assert (measurement.measure, measurement.quantity) == ("claim", name)
    assert measurement.detail["status"] in ("reproduced", "contradicted", "out of reach here")
    assert measurement.detail["arithmetic"]


def test_memory_claim_follows_the_measurement() -> None:
    assert claims.memory_growth([]).detail["status"] == "reproduced"
    assert claims.memory_to_16k([]).detail["status"] == "reproduced"
    with patch.object(claims.FlashAttention, "apply", claims.naive):
        assert claims.memory_growth([]).detail["status"] == "contradicted"
        assert claims.memory_to_16k([]).detail["status"] == "contradicted"


@pytest.mark.parametrize(("power", "status"), [(1, "reproduced"), (2, "contradicted")])
def test_time_claim_follows_the_measurement(power: int, status: str) -> None:
    with patch.object(claims, "_seconds", lambda length, **options: length**power):
        assert claims.time_linear([]).detail["status"] == status


@pytest.mark.parametrize(("speedup", "status"), [(1.8, "reproduced"), (1.6, "contradicted")])
def test_causal_claim_follows_the_measurement(speedup: float, status: str) -> None:
    with patch.object(claims, "_seconds", lambda length, heads, causal: 1.0 if causal else speedup):
        assert claims.causal_skip([]).detail["status"] == status


@pytest.mark.parametrize("variant", CARD.variants)
def test_flops_are_those_of_the_pairs_that_the_mask_shows(variant: str) -> None:
    options, work = CARD.variants[variant], Workload(sequence_length=37)
    lengths = laws.packed_lengths(work.tokens) if options.get("packed") else [37] * work.batch_size
    keys = [round(options.get("keys", 1.0) * n) for n in lengths]
    masks = [(Rules.of(**options).mask(n, t), n, t) for n, t in zip(lengths, keys, strict=True)]
    pairs = sum(int(mask.seen(torch.arange(n), torch.arange(t)).sum()) for mask, n, t in masks)
    width = work.model.num_attention_heads * work.model.head_dim
    assert laws.flops(work, **options) == 7 * 2 * pairs * width
