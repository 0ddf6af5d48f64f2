"""LoftQ: the error falls with its steps, and the first one rounds the matrix itself."""

import torch

from impls.finetuning.lora_init.reference import loftq


def test_loftq_s_error_falls_and_its_first_step_rounds_the_matrix_itself() -> None:
    W = torch.randn(48, 40, generator=torch.Generator().manual_seed(0))  # noqa: N806
    A, B, Q, errors = loftq(W, 4, 2.0, 4)  # noqa: N806
    assert errors.diff().max() < 0
    torch.testing.assert_close((W - Q - 2.0 * B @ A).norm(), errors[-1])
    first = loftq(W, 4, 2.0, 1)
    torch.testing.assert_close((W - first[2]).norm(), errors[0])
