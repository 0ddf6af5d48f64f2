"""Block quantisation: its error is at most half a step for any size; values that are not finite stay so."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.spec import Topology
from harness.spec.named import NAMED
from impls.common.data import batch
from impls.common.weights import initial
from impls.parallelism.zero_plus_plus import laws, plain
from impls.parallelism.zero_plus_plus.plain import reduced, rounded
from impls.parallelism.zero_plus_plus.quantisation import BLOCK, decode, dequantise, encode, levels, quantise

EPS = torch.finfo(torch.float32).eps
bits = st.sampled_from([4, 8])
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
sizes = st.integers(1, 70)
blocks = st.integers(1, 40)


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    """A few rows of numbers of very different sizes, zeros among them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(1, 3)), draw(sizes)
    x = torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-30, 30, shape, generator=generator)
    return (x * torch.randint(0, 3, shape, generator=generator).sign()).to(draw(dtypes))


def half_steps(scales: Tensor, n: int, block: int) -> Tensor:
    return scales.double().repeat_interleave(block, -1)[..., :n] / 2


@given(rows(), bits, blocks)
def test_no_element_is_off_by_more_than_half_a_step_of_its_block(x: Tensor, bits: int, block: int) -> None:
    codes, scales = quantise(x, bits, block)
    found = dequantise(codes, scales, torch.empty(x.shape, dtype=torch.float64), block)
    most = codes.abs().max()
    assert most <= levels(bits)
    # plus the codes' own arithmetic in float32, where x / s is rounded before it is rounded to a code
    bound = half_steps(scales, x.shape[-1], block) * (1 + 2 * levels(bits) * EPS)
    assert ((found - x.double()).abs() <= bound).all()


@given(rows(), bits, blocks)
def test_a_scale_is_its_blocks_largest_element_over_the_largest_code(x: Tensor, bits: int, block: int) -> None:
    _, scales = quantise(x, bits, block)
    for row, found in zip(x.double(), scales.double(), strict=True):
        largest = torch.stack([part.abs().max() for part in row.split(block)])
        torch.testing.assert_close(found * levels(bits), largest, rtol=2 * EPS, atol=1e-35)


@given(rows(), bits, blocks)
def test_a_message_holds_codes_and_scales_and_no_byte_more(x: Tensor, bits: int, block: int) -> None:
    message = encode(x, bits, block)
    out = torch.empty(x.shape, dtype=torch.float64)
    assert torch.equal(decode(message, out, bits, block), dequantise(*quantise(x, bits, block), out.clone(), block))
    assert message.shape[-1] == 4 * math.ceil(x.shape[-1] / block) + math.ceil(x.shape[-1] * bits / 8)


@pytest.mark.parametrize("n", [1, 255, 256, 257, 512, 1001])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_law_counts_a_message_as_it_is(n: int, bits: int) -> None:
    assert encode(torch.ones(n), bits).nbytes == laws.message(n, 4, bits)
    assert laws.BLOCK == BLOCK


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("bits", [4, 8])
def test_values_that_are_not_finite_spoil_only_their_own_block(bad: float, bits: int) -> None:
    x = torch.ones(3 * BLOCK + 7)
    x[BLOCK + 3] = bad
    found = rounded(x, bits)
    spoilt = torch.zeros(x.shape, dtype=torch.bool)
    spoilt[BLOCK : 2 * BLOCK] = True
    assert torch.equal(found.isfinite(), ~spoilt)
    torch.testing.assert_close(found[~spoilt], x[~spoilt])


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zero_and_what_float32_can_hardly_hold_stays_small(bits: int) -> None:
    tiny = torch.tensor([1e-45, -1e-44, 0.0])
    assert torch.equal(rounded(torch.zeros(300), bits), torch.zeros(300))
    assert (rounded(tiny, bits).abs() <= 2e-38).all()


def test_codes_have_four_bits_or_eight() -> None:
    with pytest.raises(ValueError, match="4 or 8 bits, not 3"):
        encode(torch.ones(4), 3)


def relative(error: Tensor, exact: Tensor) -> float:
    return float(error.double().norm() / exact.double().norm())


@pytest.mark.parametrize("bits", [4, 8])
def test_the_error_on_a_models_weights_is_that_of_rounding_uniformly(bits: int) -> None:
    """√(s²/12) per element: the average of errors of at most half a step."""
    for name, weight in initial(NAMED["tiny"]):
        if weight.dim() == 1:
            continue
        x = weight.flatten()
        _, scales = quantise(x, bits)
        predicted = float((half_steps(scales, x.numel(), BLOCK) / math.sqrt(3)).norm())
        assert float((rounded(x, bits) - x).norm()) == pytest.approx(predicted, rel=0.03), name


def test_blocks_keep_an_outliers_coarse_grid_to_its_neighbours() -> None:
    """The naive form has one scale for the whole tensor."""
    x = torch.randn(16 * BLOCK, generator=torch.Generator().manual_seed(0))
    x[5] = 100.0
    naive = dequantise(*quantise(x, 8, x.numel()), torch.empty_like(x), x.numel())
    # every block but one has a grid that fits its own largest element
    assert relative(rounded(x, 8) - x, x) < relative(naive - x, x) / 3


def bounds(gradients: Tensor, group: int, bits: int) -> tuple[Tensor, Tensor]:
    """For [N, N, size] by sender and owner: the largest error of two hops, Σ s/2 over the senders of each hop, and the
    variance Σ s²/12 for uniformly rounded codes; [N, size]."""
    ranks, _, size = gradients.shape
    hop = gradients.view(ranks // group, group, ranks, size)
    most = variance = torch.zeros(ranks, size, dtype=torch.float64)
    if group > 1:
        off = half_steps(quantise(hop, bits)[1], size, BLOCK)
        most, variance = off.sum((0, 1)), off.square().sum((0, 1)) / 3
        hop = rounded(hop, bits)
    if group < ranks:
        off = half_steps(quantise(hop.sum(1), bits)[1], size, BLOCK)
        most, variance = most + off.sum(0), variance + off.square().sum(0) / 3
    return most, variance


@given(st.integers(0, 2**31), st.sampled_from([(2, 1), (2, 2), (4, 2), (6, 3), (8, 2), (4, 4)]), sizes, bits)
def test_two_hops_are_off_by_half_a_step_for_each_sender_of_each_hop(
    seed: int, split: tuple[int, int], size: int, bits: int
) -> None:
    ranks, group = split
    gradients = torch.randn(ranks, ranks, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = reduced(gradients, group, bits).view(ranks, size)
    most, _ = bounds(gradients, group, bits)
    assert ((found - gradients.sum(0)).abs() <= most * (1 + 1e-4)).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("split", [(2, 2), (4, 2), (8, 2)], ids=str)
def test_on_a_models_gradient_the_error_is_bounded_and_that_of_rounding_uniformly(
    split: tuple[int, int], bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ranks, group), work = split, NAMED["tiny"].with_(dtype="fp64")
    off = expected = 0.0

    def reduced_and_compared(gradients: Tensor, group: int, bits: int) -> Tensor:
        nonlocal off, expected
        found, (most, variance) = reduced(gradients, group, bits), bounds(gradients, group, bits)
        error = (found.view(ranks, -1) - gradients.sum(0)).abs()
        assert (error <= most * (1 + 1e-4)).all()
        off, expected = off + float(error.square().sum()), expected + float(variance.sum())
        return found

    monkeypatch.setattr(plain, "reduced", reduced_and_compared)
    model = plain.build(work, Topology(), ranks=ranks, group=group, weight_bits=0, gradient_bits=bits)
    model.backward(batch(work, 0))
    # below 1: in a block stretched by an outlier, most elements are closer to a code than half a step
    assert 0.8 < math.sqrt(off / expected) < 1.02


def test_two_hops_lose_less_than_a_ring_that_quantises_at_each_step() -> None:
    ranks, size = 16, 4 * BLOCK
    gradients = torch.randn(ranks, ranks, size, generator=torch.Generator().manual_seed(0))
    exact = gradients.sum(0).flatten()
    partial = gradients[0]
    for rank in range(1, ranks):
        partial = rounded(partial, 4) + gradients[rank]
    assert relative(reduced(gradients, 4, 4) - exact, exact) < 0.8 * relative(partial.flatten() - exact, exact)
