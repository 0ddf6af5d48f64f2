"""What a loop order moves between HBM and SRAM, and FlashAttention-3's schedule and FP8."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from harness.spec import ModelConfig, Topology, Workload
from impls.acceleration.flash_attention import fa1, fa3, hbm, problem, reference
from impls.acceleration.flash_attention.hbm import Sizes
from impls.acceleration.flash_attention.rules import Rules
from tests.impls.oracle import drawn

SMALL = {"B_R": 48, "B_C": 20}
ORDERS = ("keys", "queries")


@contextmanager
def moved() -> Iterator[list[int]]:
    """The bytes of each tile that a reference reads or writes."""
    found: list[int] = []

    def load(x: Tensor, rows: slice) -> Tensor:
        found.append(x[..., rows, :].nbytes)
        return plain_load(x, rows)

    def store(x: Tensor, rows: slice, tile: Tensor) -> None:
        found.append(x[..., rows, :].nbytes)
        plain_store(x, rows, tile)

    plain_load, plain_store = reference.load, reference.store
    with (
        patch.multiple(reference, load=load, store=store, **SMALL),
        patch.multiple(fa1, load=load, store=store, **SMALL),
    ):
        yield found


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("length", [96, 131])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("outer", ORDERS)
def test_the_references_move_as_many_bytes_as_counted(outer: str, causal: bool, length: int, dtype: str) -> None:
    model = ModelConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    work = Workload(model=model, batch_size=3, sequence_length=length, dtype=dtype)
    sizes = Sizes(3 * 4, 3 * 2, length, length, 8, work.element_size)
    options = Rules(causal).mask(length, length), *SMALL.values()
    inputs = drawn(problem, work, causal=causal)
    with moved() as forward:
        output = reference.build(work, Topology(), outer=outer, causal=causal)(inputs)["output"]
    with moved() as backward:
        output.sum().backward()
    assert sum(forward) == hbm.forward(sizes, outer, *options)
    assert sum(backward) == hbm.backward(sizes, outer, *options)


def test_the_units_of_the_table_are_those_of_the_count() -> None:
    tiles, unit = 5, 100 * 64 * 2
    sizes, mask = Sizes(1, 1, 100, 100, 64, element=2, wide=0), Rules().mask(100, 100)
    assert [hbm.forward(sizes, order, mask, 20, 20) / unit for order in ORDERS] == [2 + 3 * tiles, 2 + 2 * tiles]
    both = [hbm.backward(sizes._replace(wide=2), order, mask, 20, 20) for order in ORDERS]
    statistics = [2 * tiles * 100 * 2, (1 + 2 * tiles) * 100 * 2]
    units = [(whole - rest) / unit for whole, rest in zip(both, statistics, strict=True)]
    assert units == [4 + 5 * tiles, 6 + 4 * tiles]


def test_queries_outside_move_two_thirds_forward_and_tiles_that_see_nothing_do_not_move() -> None:
    sizes = Sizes(8, 8, 4096, 4096, 64, element=2)
    full, causal = (Rules(each).mask(4096, 4096) for each in (False, True))
    keys, queries = (hbm.forward(sizes, order, full, 128, 128) for order in ORDERS)
    assert queries / keys == pytest.approx(2 / 3, rel=0.05)
    assert hbm.forward(sizes, "queries", causal, 128, 128) < 0.55 * queries
    assert queries < hbm.standard(sizes)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_two_warpgroups_never_need_the_tensor_cores_together(count: int) -> None:
    phases = fa3.pingpong(count)
    for mine, other in phases:
        assert not (any(a[0] in "SO" for a in mine) and any(a[0] in "SO" for a in other))
    for group in (0, 1):
        done = [action for phase in phases for action in phase[group]]
        expected = {f"{kind}_{j}" for kind in "SPO" for j in range(count)}
        assert len(done) == len(expected)
        assert set(done) == expected
        for j in range(count):
            assert done.index(f"S_{j}") < done.index(f"P_{j}") < done.index(f"O_{j}")
    assert len(phases) == 2 * count + 2


def test_the_schedule_of_the_docstring_is_the_computed_one() -> None:
    lines = [line for line in str(fa3.__doc__).splitlines() if line.strip().startswith("warpgroup ")]
    for group, line in enumerate(lines):
        cells = line.split(str(group + 1), 1)[1].replace("·", " ").split()
        assert cells == [action for phase in fa3.pingpong(3) for action in phase[group]]


@pytest.mark.parametrize("d", [1, 8, 64])
def test_incoherent_processing_leaves_the_scores(d: int) -> None:
    assert torch.equal(fa3.hadamard(d) @ fa3.hadamard(d).T, d * torch.eye(d))
    q, k = torch.randn(2, 20, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixed = fa3.incoherent(q, k)
    torch.testing.assert_close(mixed[0] @ mixed[1].T, q @ k.T)
    spike = torch.zeros(1, 64, dtype=torch.float64)
    spike[0, 3] = 8.0
    assert fa3.incoherent(spike, spike)[0].abs().max() == pytest.approx(1.0)


def test_a_block_has_a_scale_of_its_own() -> None:
    x = torch.cat([torch.full((4, 2), 1e-3), torch.full((4, 2), 100.0)])
    assert torch.equal(fa3.in_blocks(x, 4)[1].unique(), torch.tensor([1e-3, 100.0]) / 448)
    (whole, scale), (parts, scales) = fa3.quantised(x), fa3.in_blocks(x, 4)
    torch.testing.assert_close(parts.float() * scales, x)
    assert not torch.allclose(whole.float() * scale, x)
    assert fa3.quantised(torch.zeros(3))[0].float().isfinite().all()


def error(remedies: dict[str, bool], change: Callable[[Tensor], Tensor] = lambda x: x) -> float:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(300, 64, generator=generator, dtype=torch.float64) for _ in range(3))
    q, k = change(q), change(k)
    exact = (q @ k.T * 64**-0.5).softmax(-1) @ v
    return float((fa3.attention(q, k, v, **remedies) - exact).square().mean().sqrt())


def test_fp8_is_attention_and_incoherent_processing_helps_against_outliers() -> None:
    def spikes(x: Tensor) -> Tensor:
        x = x.clone()
        x[::7, 5] *= 30
        return x

    alone, mixed = {"block": True, "mixed": False}, {"block": True, "mixed": True}
    assert error(alone) < 0.02
    assert error(mixed, spikes) < 0.7 * error(alone, spikes)
