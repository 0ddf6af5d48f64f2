"""DPO's reference and TRL's DPOTrainer compared with equation 7 in float64."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from harness.spec import Function, ModelConfig, Topology, Unsupported, Workload
from impls.posttraining.preference import CARD, on_trl, problem, reference
from tests.impls.oracle import computed, drawn, error_over_plain, same_in_float64, with_fault

HERE = Topology()
PARITY = 3  # times the plain formula's error: the harness's rule
BETA = CARD.variants["dpo"]["beta"]
# TRL reads names that Transformers is about to rename.
trl_warnings = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def work(dtype: str = "fp32", rows: int = 8, length: int = 32, vocab: int = 61) -> Workload:
    return Workload(
        model=ModelConfig(vocab_size=vocab, hidden_size=12), batch_size=rows, sequence_length=length, dtype=dtype
    )


@pytest.fixture(scope="module")
def trl() -> Function:
    return on_trl.build(work(), HERE, beta=BETA)


@settings(derandomize=True, max_examples=60)
@given(
    rows=st.integers(2, 9),
    length=st.integers(2, 40),
    vocab=st.integers(2, 70),
    beta=st.floats(0.01, 2),
    seed=st.integers(0, 99),
)
def test_reference_is_equation_7_for_any_lengths(rows: int, length: int, vocab: int, beta: float, seed: int) -> None:
    workload = work("fp64", rows, length, vocab).with_(seed=seed)
    with patch.object(reference, "TILE", 16):
        assert same_in_float64(reference.build(workload, HERE, beta=beta), problem, workload, beta=beta)


def test_gradient_equals_finite_differences() -> None:
    inputs = drawn(problem, work("fp64", rows=4, length=5, vocab=3), beta=BETA)
    loss = reference.build(work(), HERE, beta=BETA)
    names = ("policy_hidden", "policy_head")
    assert torch.autograd.gradcheck(
        lambda *given: loss({**inputs, **dict(zip(names, given, strict=True))})["loss"],
        [inputs[name] for name in names],
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_reference_is_within_the_harness_s_bound_of_the_oracle(dtype: str) -> None:
    workload = work(dtype, rows=16, length=64, vocab=512)
    assert error_over_plain(reference.build(workload, HERE, beta=BETA), problem, workload, beta=BETA) <= PARITY


FAULTS = {
    "sign flipped": ("logsigmoid(chosen - rejected)", "logsigmoid(rejected - chosen)"),
    "beta missing": ("(beta * (log_probs - reference_log_probs))", "(log_probs - reference_log_probs)"),
    "reference model missing": ("(log_probs - reference_log_probs)", "log_probs"),
    "pairs interleaved": (".chunk(2)", ".unflatten(0, (-1, 2)).unbind(1)"),
    "sum instead of mean": ("rejected).mean(), chosen", "rejected).sum(), chosen"),
    "tokens of another row": ("row[tile], z.gather", "row[tile] * 0, z.gather"),
    "mask not shifted": ("pad(mask[:, 1:]", "pad(mask[:, :-1]"),
    "a tile of one position less": (
        "sums.index_add_(0, row[tile], z.gather(-1, y[tile, None]).squeeze(-1).sub(logsumexp[tile]).double())",
        "sums.index_add_(0, row[tile][1:], z.gather(-1, y[tile, None])[1:, 0].sub(logsumexp[tile][1:]).double())",
    ),
    "backward: softmax not subtracted": (".exp_().neg_()", ".zero_()"),
    "backward: not weighted": (".mul_(d_sums[row[tile], None])", ""),
    "backward: only the last tile reaches the head": ("d_head += d_z.T @ h[tile]", "d_head = d_z.T @ h[tile]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_seen(fault: str) -> None:
    module = with_fault(reference, *FAULTS[fault])
    module.TILE = 16  # several, of some 100 positions
    faulty = module.build(work(), HERE, beta=BETA)
    assert not same_in_float64(faulty, problem, work(), beta=BETA)
    assert error_over_plain(faulty, problem, work(), beta=BETA) > 2


def test_reference_keeps_nothing_as_large_as_the_logits() -> None:
    inputs, kept = drawn(problem, work(), beta=BETA), []
    given = {x.untyped_storage().data_ptr() for x in inputs.values()}
    with saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        reference.build(work(), HERE, beta=BETA)(inputs)
    own = sum(x.numel() for x in kept if x.untyped_storage().data_ptr() not in given)
    assert own <= 5 * inputs["completion_mask"].numel() < inputs["completion_mask"].numel() * 61


@trl_warnings
def test_inputs_are_left_as_they_are(trl: Function) -> None:
    inputs = drawn(problem, work(), beta=BETA)
    before = {name: x.detach().clone() for name, x in inputs.items()}
    for function in (trl, reference.build(work(), HERE, beta=BETA)):
        computed(function, inputs)
        assert all(torch.equal(x, before[name]) for name, x in inputs.items())


def test_draw_shares_prompts_within_a_pair_and_varies_the_lengths() -> None:
    inputs = problem.draw(work(), beta=BETA)
    ids, mask, attention = (inputs[name] for name in ("input_ids", "completion_mask", "attention_mask"))
    prompt = attention - mask
    assert torch.equal(prompt[:4], prompt[4:])
    assert torch.equal(ids[:4] * prompt[:4], ids[4:] * prompt[4:])
    assert not torch.equal(mask[:4].sum(1), mask[4:].sum(1))
    assert len(set(attention.sum(1).tolist())) > 2
    assert bool((ids * (1 - attention) == 0).all())


@pytest.mark.parametrize(("rows", "length"), [(1, 8), (2, 1)])
def test_a_workload_too_small_for_a_pair_is_refused(rows: int, length: int) -> None:
    with pytest.raises(ValueError, match=f"not {rows} and {length}"):
        problem.draw(work(rows=rows, length=length), beta=BETA)


@trl_warnings
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_trl_is_within_the_harness_s_bound_of_the_oracle(dtype: str) -> None:
    workload = work(dtype)
    assert error_over_plain(on_trl.build(workload, HERE, beta=BETA), problem, workload, beta=BETA) <= PARITY


@trl_warnings
def test_trl_with_the_pairs_the_wrong_way_round_is_seen(trl: Function) -> None:
    def swapped(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        outputs = trl({name: torch.cat(x.chunk(2)[::-1]) for name, x in inputs.items()})
        return {**outputs, "chosen_rewards": outputs["rejected_rewards"], "rejected_rewards": outputs["chosen_rewards"]}

    assert error_over_plain(swapped, problem, work(), beta=BETA) > PARITY


@trl_warnings
def test_trl_takes_beta_from_the_variant(trl: Function) -> None:
    other = on_trl.build(work(), HERE, beta=2 * BETA)
    assert error_over_plain(other, problem, work(), beta=2 * BETA) <= PARITY
    assert error_over_plain(other, problem, work(), beta=BETA) > PARITY


@trl_warnings
def test_trl_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    inputs = drawn(problem, work(), beta=BETA)
    computed(on_trl.build(work(), HERE, beta=BETA), inputs)
    assert list(tmp_path.iterdir()) == []


def test_trl_in_float64_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="float32"):
        on_trl.build(work("fp64"), HERE, beta=BETA)
