"""Products of narrow matrices in float32: rounded once, and PyTorch's own for other dtypes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.launch import checked, widened
from harness.launch.rank import Context
from harness.spec import Workload

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
PRODUCTS: dict[str, Product] = {
    "mm": lambda x, y, _: x @ y,
    "transposed": lambda x, y, _: (y.mT @ x.mT).mT,
    "linear": lambda x, y, _: torch.nn.functional.linear(x[None], y.mT),
    "bmm": lambda x, y, _: torch.bmm(x.expand(3, -1, -1), y.expand(3, -1, -1)),
    "addmm": lambda x, y, z: torch.addmm(z, x, y, beta=2, alpha=0.5),
    "addmm_over_nothing": lambda x, y, z: torch.addmm(z * torch.nan, x, y, beta=0),
    "baddbmm": lambda x, y, z: torch.baddbmm(z, x[None], y[None], alpha=3),
}


@pytest.fixture
def widen() -> Iterator[Callable[[], None]]:
    installed: list[torch.library.Library] = []
    yield lambda: installed.append(widened.install())
    for library in installed:
        library._destroy()


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(shape, generator=generator).bfloat16() for shape in ((33, 65), (65, 17), (17,)))
    return x.to(dtype), y.to(dtype), z.to(dtype)


@pytest.mark.parametrize("dtype", widened.NARROW)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_exact_up_to_one_rounding(name: str, dtype: torch.dtype, widen: Callable[[], None]) -> None:
    exact = PRODUCTS[name](*operands(torch.float64))
    widen()
    found = PRODUCTS[name](*operands(dtype))
    assert found.dtype == dtype
    assert (found == exact.to(dtype)).float().mean() > 0.99  # float32 may round a tie the other way
    assert (found - exact).abs().max() <= exact.abs().max() * torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_beyond_float16s_range_is_infinite(name: str, widen: Callable[[], None]) -> None:
    def product(dtype: torch.dtype) -> Tensor:
        x, y, z = operands(torch.float64)
        return PRODUCTS[name](*((t * 90).to(dtype) for t in (x, y, z)))

    exact = product(torch.float64)
    beyond = exact.abs() > torch.finfo(torch.float16).max + 32  # the numbers that round to infinity
    widen()
    found = product(torch.float16)
    assert 0 < beyond.sum() < beyond.numel()
    assert torch.equal(found[beyond], exact[beyond].sign().half() * torch.inf)
    assert found[~beyond].isfinite().all()


@pytest.mark.parametrize("name", PRODUCTS)
def test_other_dtypes_are_pytorchs_to_the_bit(name: str, widen: Callable[[], None]) -> None:
    before = PRODUCTS[name](*operands(torch.float64))  # which float32 would make inexact
    widen()
    assert torch.equal(PRODUCTS[name](*operands(torch.float64)), before)


@pytest.mark.parametrize("dtype", [*widened.NARROW, torch.float32])
def test_gradients_flow(dtype: torch.dtype, widen: Callable[[], None]) -> None:
    def gradient(dtype: torch.dtype) -> Tensor:
        x, y, z = operands(dtype)
        torch.addmm(z, x.requires_grad_(), y).square().sum().backward()
        assert x.grad is not None
        return x.grad.double()

    exact = gradient(torch.float64)
    widen()
    assert (gradient(dtype) - exact).norm() < 0.01 * exact.norm()


def test_it_ends_with_what_was_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened, "_product", lambda left, right: torch.zeros(1))
    x, y, _ = operands(torch.bfloat16)
    library = widened.install()
    assert torch.equal(x @ y, torch.zeros(1))
    del library
    assert (x @ y).shape == (33, 17)


@pytest.mark.parametrize(
    ("dtype", "able", "said"),
    [
        ("bf16", ("bf16",), ""),
        ("bf16", (), "no bfloat16 instructions: matrix products are computed in float32 and rounded once"),
        ("fp16", ("fp16",), ""),
        ("fp16", ("bf16",), "no float16 instructions: matrix products are computed in float32 and rounded once"),
        ("fp32", (), ""),
    ],
)
def test_the_record_says_so_where_it_was_needed(
    dtype: str, able: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for narrow in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{narrow}_supported", lambda narrow=narrow: narrow in able)
    context = Context(0, 1, tmp_path)
    assert checked.widen(context, Workload(dtype=dtype)) == said
    assert ("widened" in context.state) == bool(said)
