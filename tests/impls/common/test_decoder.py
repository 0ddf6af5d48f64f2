"""Our decoder is Transformers' Qwen3, Qwen2 and Llama."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from harness.spec import Batch, ModelConfig, Workload
from harness.spec.named import NAMED
from impls.common.data import batch
from impls.common.weights import build_model
from tests.impls.common.peer import FEATURES, TIED_GQA, errors, figures, floor, oracle, ours, theirs

CONFIGS = {
    "untied_gqa": NAMED["tiny"].model,
    "tied_gqa": TIED_GQA,
    "uneven": NAMED["uneven"].model,
    "uneven_tied": NAMED["uneven_tied"].model,
    **FEATURES,
}
HONEST = 3  # × the error of Transformers' own model in the same precision


@cache
def given(name: str) -> Batch:
    """Uneven sequence length, some labels ignored."""
    drawn = batch(Workload(model=CONFIGS[name], batch_size=3, sequence_length=29), 0)
    drawn.labels[0, :5] = -100
    return drawn


@cache
def truth(name: str) -> dict[str, Tensor]:
    return figures(oracle(CONFIGS[name]), given(name))


def allowed(name: str, dtype: torch.dtype) -> dict[str, float]:
    """HONEST × the noise floor. Transformers has no float64 floor, since parts of it use float32: there the floor is
    float32's, scaled by the ratio of the machine epsilons."""
    peer = torch.float32 if dtype is torch.float64 else dtype
    scale = HONEST * torch.finfo(dtype).eps / torch.finfo(peer).eps
    noise = floor(figures(theirs(CONFIGS[name], peer), given(name)), truth(name))
    return {figure: scale * error for figure, error in noise.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_loss_and_gradients_equal_transformers_to_its_own_round_off(name: str, dtype: torch.dtype) -> None:
    found = errors(figures(ours(CONFIGS[name], dtype), given(name)), truth(name))
    bound = allowed(name, dtype)
    assert all(found[figure] <= bound[figure] for figure in bound), (found, bound)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("gain", ["model.layers.0.self_attn.q_norm.weight", "model.norm.weight"])
def test_one_gain_off_by_a_thousandth_shows_in_logits_and_gradients(gain: str, dtype: torch.dtype) -> None:
    model = ours(CONFIGS["tied_gqa"], dtype)
    with torch.no_grad():
        model.get_parameter(gain)[0] *= 1.001
    found = errors(figures(model, given("tied_gqa")), truth("tied_gqa"))
    bound = allowed("tied_gqa", dtype)
    assert all(found[figure] > bound[figure] for figure in ("logits", "gradients")), (found, bound)


@pytest.mark.parametrize("field", ["rope_theta", "rms_norm_eps"])
def test_another_rope_base_or_epsilon_shows(field: str) -> None:
    changed = ModelConfig(**{**vars(TIED_GQA), field: 1.1 * getattr(TIED_GQA, field)})
    found = errors(figures(ours(changed, torch.float64), given("tied_gqa")), truth("tied_gqa"))
    assert found["logits"] > allowed("tied_gqa", torch.float64)["logits"]


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_decoding_gives_the_tokens_that_transformers_generates(name: str) -> None:
    model, prompt, new = ours(CONFIGS[name]), given(name).inputs[:, :7], 16
    tokens = prompt
    with torch.no_grad():
        for _ in range(new):
            tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), dim=1)
    expected = theirs(CONFIGS[name]).generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new, pad_token_id=0
    )
    torch.testing.assert_close(tokens, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_config_in_its_order(name: str) -> None:
    found = [(n, tuple(p.shape)) for n, p in ours(CONFIGS[name]).named_parameters()]
    assert found == list(CONFIGS[name].shapes())


def test_with_stochastic_depth_a_sequence_skips_the_layer_that_its_first_token_chooses() -> None:
    work = Workload(model=replace(TIED_GQA, num_hidden_layers=3, stochastic_depth=True), dtype="fp64")
    model = build_model(work)
    tokens = torch.tensor([[4, 9, 2], [5, 1, 1], [7, 8, 3]])  # 4, 5 and 7 skip layers 1, 2 and 1
    logits = model(tokens)
    for row, skipped in enumerate((1, 2, 1)):
        others = build_model(work.with_(model=replace(work.model, stochastic_depth=False)))
        del others.model.layers[skipped]
        torch.testing.assert_close(logits[row], others(tokens[row : row + 1])[0])
    model(tokens[::2]).sum().backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unused == {name for name, _ in model.named_parameters() if name.startswith("model.layers.1.")}
