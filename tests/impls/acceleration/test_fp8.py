"""FP8: the formats by their definition, every recipe's tiles and scales, delayed scaling's histories, the emulated
accumulator and the claims."""

import pytest
import torch
from torch import Tensor

from harness.spec import Topology, Workload
from harness.spec.model import ModelConfig
from impls.acceleration.fp8 import CARD, accumulation, claims, laws
from impls.acceleration.fp8.formats import E4M3, E5M2, Format, cast, encode, power_of_two
from impls.acceleration.fp8.problem import MARGIN, after, doubtful, draw, plain
from impls.acceleration.fp8.recipes import RECIPES, Recipe, Rule
from impls.acceleration.fp8.reference import build, decode, largest, pushed, quantise, scale

FORMATS = {"E4M3": E4M3, "E5M2": E5M2}
TINY = Workload("odd", ModelConfig(hidden_size=133, intermediate_size=37), batch_size=3, sequence_length=11)


@pytest.fixture(scope="module")
def every() -> Tensor:
    """All 2¹⁶ bfloat16 numbers."""
    return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def bits(x: Tensor) -> Tensor:
    return x.view(torch.uint8)


@pytest.mark.parametrize(("name", "saturate"), [("E4M3", True), ("E5M2", False)])
def test_a_cast_has_the_bits_of_torch_s_for_every_bfloat16_number(every: Tensor, name: str, saturate: bool) -> None:
    f = FORMATS[name]
    ours = encode(cast(every, f, saturate), f)
    assert torch.equal(ours, bits(every.to(f.dtype)))
    assert torch.equal(bits(cast(every, f, saturate).to(f.dtype)), ours)


@pytest.mark.parametrize("f", FORMATS.values(), ids=FORMATS)
def test_a_cast_is_the_nearest_value_and_ties_go_to_the_even_code(every: Tensor, f: Format) -> None:
    """Without rounding: by distance to every value that the format has."""
    values = torch.arange(f.nan, dtype=torch.uint8).view(f.dtype).double()
    values = values[values.isfinite()]
    x = torch.cat((every.float()[::7], (values[1:] + values[:-1]).float() / 2)).abs()  # and every tie
    x = x[x.isfinite() & (x <= f.max)].double()
    distance = (x[:, None] - values).abs()
    odd = torch.arange(len(values)) % 2
    nearest = values[(distance + distance.amin(1, keepdim=True) * 0).add(odd * 1e-300).argmin(1)]
    tied = (distance == distance.amin(1, keepdim=True)).sum(1) == 2
    even = torch.where((distance == distance.amin(1, keepdim=True)) & (odd == 0), 1, 0).argmax(1)
    assert torch.equal(cast(x.float(), f).double(), torch.where(tied, values[even], nearest))


@pytest.mark.parametrize("f", FORMATS.values(), ids=FORMATS)
def test_every_code_survives_a_round_trip(f: Format) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    values = codes.view(f.dtype).float()
    again = encode(cast(values, f, saturate=False), f)
    assert torch.equal(again[~values.isnan()], codes[~values.isnan()])
    assert (again[values.isnan()] & 0x7F == f.nan).all()


def test_beyond_the_maximum_a_cast_saturates_or_overflows_as_stated() -> None:
    x = torch.tensor([448.0, 464.0, 465.0, 1e9, torch.inf, -torch.inf, torch.nan])
    assert cast(x, E4M3)[:6].tolist() == [448.0] * 5 + [-448.0]
    assert cast(x, E4M3)[6].isnan()
    assert cast(x, E4M3, saturate=False).isnan().tolist() == [False, False, True, True, True, True, True]
    y = torch.tensor([57344.0, 61439.0, 61440.0, -torch.inf])
    assert cast(y, E5M2).tolist() == [57344.0] * 3 + [-57344.0]
    assert cast(y, E5M2, saturate=False).tolist() == [57344.0, 57344.0, torch.inf, -torch.inf]


def test_torch_saturates_e4m3_even_from_infinity_and_lets_e5m2_overflow() -> None:
    x = torch.tensor([464.0, 1e9, torch.inf])
    assert x.to(torch.float8_e4m3fn).float().tolist() == [448.0] * 3
    assert torch.tensor([61439.0, 61440.0]).to(torch.float8_e5m2).float().tolist() == [57344.0, torch.inf]


def test_powers_of_two_are_exact() -> None:
    exponents = torch.arange(-126, 128)
    assert power_of_two(exponents).tolist() == [2.0**e for e in exponents.tolist()]


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("f", FORMATS.values(), ids=FORMATS)
def test_a_scale_brings_the_largest_element_near_the_maximum(f: Format, rule: Rule) -> None:
    amax = torch.logspace(-30, 30, 4001, base=2)
    top = amax * scale(amax, f, rule)
    low, high = {
        Rule.EXACT: (1.0, 1.0),
        Rule.DOWN: (0.5, 1.0),
        Rule.MX: (2**f.max_exponent / f.max, 2 ** (f.max_exponent + 1) / f.max),
    }[rule]
    eps = torch.finfo(torch.float32).eps
    assert (top >= f.max * low * (1 - eps)).all()
    assert (top <= f.max * high * (1 + eps)).all()


@pytest.mark.parametrize("amax", [0.0, torch.inf, torch.nan, 1e-45])
@pytest.mark.parametrize("rule", Rule)
def test_a_tile_without_a_usable_amax_keeps_its_elements_and_no_scale_is_infinite(rule: Rule, amax: float) -> None:
    found = float(scale(torch.tensor(amax), E4M3, rule))
    assert 0 < found < torch.inf
    if amax != 1e-45:
        assert found == 1.0


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("shape", [(1, 1), (130, 257), (33, 64)])
def test_every_element_is_scaled_by_its_own_tile(name: str, shape: tuple[int, int]) -> None:
    recipe, x = RECIPES[name], torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for tile in (recipe.tile, recipe.weight_tile):
        q = quantise(x, E4M3, tile, recipe.rule)
        r, c = tile[0] or shape[0], tile[1] or shape[1]
        for i in range(0, shape[0], r):
            for j in range(0, shape[1], c):
                block = x[i : i + r, j : j + c]
                s = scale(block.abs().max(), E4M3, recipe.rule)
                assert q.scales[i // r, j // c] == s
                assert torch.equal(q.codes[i : i + r, j : j + c].float(), cast(block * s, E4M3))
    assert largest(x, recipe.tile).max() == x.abs().max()


def test_elements_of_a_block_keep_their_precision_beside_an_outlier_in_another() -> None:
    x = torch.full((128, 256), 0.001)
    x[0, 0] = 1000.0
    whole, blocks = (quantise(x, E4M3, RECIPES[name].weight_tile, RECIPES[name].rule) for name in ("tensor", "blocks"))
    assert decode(whole, torch.float32)[1, 200] == 0
    assert decode(blocks, torch.float32)[1, 200] == pytest.approx(0.001, rel=2**-4)


def test_a_history_gets_the_newest_amax_in_front_and_loses_the_oldest() -> None:
    history, x = torch.tensor([4.0, 3.0, 2.0]), torch.tensor([[1.0, -9.0]])
    assert pushed(history, x).tolist() == after(history, x).tolist() == [9.0, 4.0, 3.0]


def test_delayed_scaling_uses_the_past_alone_and_saturates_what_exceeds_it() -> None:
    x = torch.tensor([[1.0, 8.0]])
    q = quantise(x, E4M3, (0, 0), Rule.EXACT, history=torch.tensor([1.0, 4.0, 2.0]))
    assert float(q.scales) == 112.0
    assert q.codes.float().tolist() == [[112.0, 448.0]]


@pytest.mark.parametrize("variant", CARD.variants)
def test_the_reference_is_the_formula_on_odd_sizes(variant: str) -> None:
    arguments = dict(CARD.variants[variant])
    inputs = draw(TINY, **arguments)
    ours, formula = build(TINY, Topology(), **arguments)(inputs), plain(inputs, **arguments)
    assert ours.keys() == formula.keys()
    for name, value in formula.items():
        expected = value.detach()
        if name == "output":
            torch.testing.assert_close(ours[name].detach(), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
        else:
            assert torch.equal(ours[name], value), name
    names = [name for name, x in inputs.items() if x.requires_grad]
    dy = torch.randn(ours["output"].shape, generator=torch.Generator().manual_seed(3)).double()
    gradients = [
        torch.autograd.grad(outputs["output"], [inputs[name] for name in names], dy) for outputs in (ours, formula)
    ]
    for name, mine, expected in zip(names, *gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-9 * float(expected.abs().max()), msg=name)


@pytest.mark.parametrize("variant", ["fp8_current", "fp8_delayed"])
def test_no_drawn_element_is_near_the_border_of_two_codes(variant: str) -> None:
    inputs = draw(TINY, **CARD.variants[variant])
    for name in ("x", "weight"):
        history = inputs.get(f"{name}_history")
        assert not doubtful(inputs[name], history).any()
    assert doubtful(torch.tensor([[448.0, 17.0]]).double(), None).any()  # a tie of 16 and 18
    assert 4 * torch.finfo(torch.float32).eps / 2 < MARGIN


def test_the_gradient_of_the_gradients_history_is_its_successor() -> None:
    inputs = draw(TINY, **CARD.variants["fp8_delayed"])
    y = build(TINY, Topology(), **CARD.variants["fp8_delayed"])(inputs)["output"]
    dy = torch.linspace(-3, 2, y.numel()).view_as(y).double()
    (history,) = torch.autograd.grad(y, [inputs["gradient_history"]], dy)
    assert history.tolist() == [3.0, *inputs["gradient_history"][:-1].tolist()]


def test_operands_take_one_byte_where_tiles_serve_both_passes() -> None:
    work = TINY.with_(dtype="bf16")
    t, h, n = work.tokens, 133, 37
    assert laws.saved(work, Topology(), "tensor", "e5m2") == 2 * t * n + t * h + n * h + 8
    assert laws.saved(work, Topology(), "blocks", "e4m3") == 2 * t * n + t * h + n * h + 4 * (2 * t + 2)
    assert laws.codes(33, 64, RECIPES["mx"].tile) == 33 * 64 + 4 * 33 * 2


def test_fourteen_bits_drop_what_lies_below_and_promotion_saves_partial_sums() -> None:
    one = torch.ones(1, 64)
    small = torch.tensor([[1.0, *[2.0**-7] * 63]])
    # Beside 1, 2⁻⁷ · 2⁻⁷ = 2⁻¹⁴ lies below the 14th bit; the second instruction sums 32 of them, 2⁻⁹, which does not.
    assert float(accumulation.product(small, small, promotion=None)) == 1.0 + 2.0**-9
    assert float(accumulation.product(small, one, promotion=None)) == 1.0 + 63 * 2.0**-7
    assert float(accumulation.product(one, one)) == 64.0
    torch.manual_seed(0)
    a, b = (cast(torch.randn(4, 1024), E4M3) for _ in range(2))
    truth = a.double() @ b.double().mT
    off = [float((accumulation.product(a, b, promotion) - truth).norm()) for promotion in (None, 128)]
    assert off[1] < off[0] / 2


def test_claims_are_judged_without_records() -> None:
    casts, memory = claims.casts([]), claims.memory([])
    assert (casts.detail["status"], casts.value) == ("contradicted", 120.0)
    assert memory.detail["status"] == "formula only"
    assert memory.value == pytest.approx(0.506, abs=1e-3)
    assert claims.accumulation([]).detail["status"] == "reproduced"


def test_recipes_of_one_scale_for_all_are_transposed_and_others_are_not() -> None:
    def whole(recipe: Recipe) -> bool:
        return recipe.tile == recipe.weight_tile == (0, 0)

    assert all(whole(recipe) == (recipe.across.name == "TRANSPOSED") for recipe in RECIPES.values())
