"""Our decoder with experts equals Transformers' Qwen3-MoE; code without support for experts reports it."""

import pytest
import torch

from harness.spec import Batch, MoeConfig, Unsupported, Workload
from harness.spec.config import config_json
from harness.spec.named import NAMED
from impls.common.data import batch
from impls.common.decoder import cross_entropy
from impls.common.experts import route, without_experts
from tests.impls.common.peer import TIED_GQA, errors, figures, floor, oracle, ours, theirs

EXPERTS = MoeConfig(**{**vars(TIED_GQA), "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 20})


def given() -> Batch:
    drawn = batch(Workload(model=EXPERTS, batch_size=3, sequence_length=29), 0)
    drawn.labels[0, :5] = -100
    return drawn


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_logits_loss_and_gradients_equal_transformers_to_its_own_round_off(dtype: torch.dtype) -> None:
    truth = figures(oracle(EXPERTS), given())
    noise = floor(figures(theirs(EXPERTS, torch.float32), given()), truth)
    scale = 3 * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    found = errors(figures(ours(EXPERTS, dtype), given()), truth)
    assert all(found[figure] <= scale * error for figure, error in noise.items()), (found, noise)


def test_a_token_fewer_experts_is_another_model() -> None:
    fewer = MoeConfig(**{**vars(EXPERTS), "num_experts_per_tok": 2})
    truth = figures(oracle(EXPERTS), given())
    assert errors(figures(ours(fewer, torch.float64), given()), truth)["logits"] > 1e-3


def test_parameters_are_those_of_the_config_in_its_order() -> None:
    assert [(n, tuple(p.shape)) for n, p in ours(EXPERTS).named_parameters()] == list(EXPERTS.shapes())


def test_gates_are_shares_of_the_chosen_experts_best_first() -> None:
    _, experts, gates = route(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 9.0], [2.0, 9.0], [1.0, 9.0]]), k=2)
    assert experts.tolist() == [[1, 2]]
    assert gates[0].tolist() == pytest.approx([1 / (1 + torch.e**-1), 1 / (1 + torch.e)])


def test_more_experts_a_token_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"num_experts_per_tok 9 exceeds model\.num_experts 8"):
        MoeConfig(num_experts_per_tok=9)


def test_code_for_dense_layers_only_rejects_experts() -> None:
    with pytest.raises(Unsupported, match=r"AutoTP has rules here for dense layers only.*hybrid_3d"):
        without_experts(NAMED["meshed_experts"], "AutoTP has rules here for")
    without_experts(NAMED["meshed"], "AutoTP has rules here for")


def test_a_model_with_experts_is_not_written_as_a_dense_one() -> None:
    with pytest.raises(ValueError, match="a model with experts cannot be written"):
        config_json(EXPERTS, "float32")


def test_no_label_has_no_loss_and_no_gradient() -> None:
    logits, labels = torch.randn(2, 3, 5, requires_grad=True), torch.full((2, 3), -100)
    loss = cross_entropy(logits, labels)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert logits.grad.eq(0).all()
