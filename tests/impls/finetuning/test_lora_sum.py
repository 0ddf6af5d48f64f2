"""Stacked factors are the weighted sum of two adapters, and summed factors are not."""

import torch

from impls.finetuning.lora_sum.reference import cat, merge, svd


def adapters() -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return [(drawn(3, 11), drawn(7, 3), factor) for factor in (1.4, -0.6)]


def test_both_ways_to_combine_are_the_weighted_sum_and_summed_factors_are_not() -> None:
    both = adapters()
    expected = sum((ws * B @ A for A, B, ws in both), torch.zeros(7, 11, dtype=torch.float64))
    for combine in (cat, svd):
        A, B = combine(both)  # noqa: N806
        assert A.shape == (6, 11)
        torch.testing.assert_close(B @ A, expected, rtol=1e-12, atol=1e-12)
    summed = sum(abs(ws) ** 0.5 * B for _, B, ws in both) @ sum(
        abs(ws) ** 0.5 * A * (1 if ws > 0 else -1) for A, _, ws in both
    )
    (a1, b1, w1), (a2, b2, w2) = both
    crossed = abs(w1 * w2) ** 0.5 * (b2 @ a1 - b1 @ a2)  # w₂ is negative, and its sign is A's
    torch.testing.assert_close(summed - expected, crossed, rtol=1e-12, atol=1e-12)


def test_merged_adapters_are_taken_out_in_any_order() -> None:
    both, base = adapters(), torch.randn(7, 11, dtype=torch.float64)
    merged = merge(base, both, 1)
    torch.testing.assert_close(merge(merged, both[::-1], -1), base, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(merge(merged, both[:1], -1), base)
