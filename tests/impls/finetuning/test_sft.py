"""Supervised fine-tuning: the dense model is the textbook's loss, the reference keeps to it in every layout and split,
and the template says exactly what is learnt."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, Topology, Workload
from harness.spec.files import InputError
from impls.common.data import IGNORED
from impls.common.weights import build_model
from impls.finetuning.sft import CARD
from impls.finetuning.sft.attention import WAYS, eager, sdpa, visible
from impls.finetuning.sft.data import ASSISTANT, BOS, END, PAD, USER, Example, batch
from impls.finetuning.sft.plain import Plain, learnt
from impls.finetuning.sft.reference import SFT
from impls.finetuning.sft.template import Rendered, first_fit, layout, render, truncate

ODD = ModelConfig(97, 24, 40, 2, 4, 2, 6)
WORK = Workload("odd_conversations", ODD, batch_size=8, sequence_length=29, dtype="fp64")
TALK = Example([("user", [10, 11]), ("assistant", [12]), ("user", [13]), ("assistant", [14, 15])])
VARIANTS = {
    name: dict(options)
    for name, options in CARD.variants.items()
    if options.get("attention") != "flex" and not options.get("sharded")
}


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank without a process group."""
    from impls.finetuning.sft import reference

    class Alone:
        group = type("group", (), {"WORLD": None})

        def get_rank(self) -> int:
            return 0

        def all_reduce(self, tensor: Tensor) -> None: ...

    monkeypatch.setattr(reference, "dist", Alone())
    monkeypatch.setattr(reference, "sum_flat", lambda tensors, group: None)


def trained(variant: str, work: Workload = WORK) -> SFT:
    return SFT(work, Topology(), **{k: v for k, v in VARIANTS[variant].items() if k != "saved"})


def options(variant: str) -> dict[str, Any]:
    return {k: v for k, v in VARIANTS[variant].items() if k in ("every", "smoothing", "keep", "noise")}


WINDOWED = WORK.with_(model=replace(ODD, sliding_window=4, sliding_layers=(1,)))


def one_at_a_time(work: Workload, examples: list[Example], every: bool, smoothing: float, keep: str) -> Tensor:
    """The textbook's loss with the decoder itself, which knows no mask but the causal one."""
    model, losses = build_model(work), []
    for example in examples:
        tokens, places = learnt(example, every, work.sequence_length, keep)
        row = torch.tensor(tokens)
        logits = model(row[None, :-1])[0]
        losses += [F.cross_entropy(logits[t - 1], row[t], label_smoothing=smoothing) for t in places]
    loss = torch.stack(losses).mean()
    loss.backward()
    one_at_a_time.gradients = {n: p.grad for n, p in model.named_parameters()}  # type: ignore[attr-defined]
    return loss.detach()


@pytest.mark.parametrize("work", [WORK, WINDOWED], ids=["full", "windows"])
@pytest.mark.parametrize(
    "variant", ["sft_padded", "sft_assistant_only", "sft_smoothed", "sft_truncated", "sft_truncated_left"]
)
def test_the_dense_model_is_the_mean_of_each_conversation_s_learnt_tokens(variant: str, work: Workload) -> None:
    chosen = {"every": False, "smoothing": 0.0, "keep": "", **options(variant)}
    examples, dense = batch(work, 0, **chosen), Plain(work, False, False, **chosen)
    loss = one_at_a_time(work, examples, **chosen)
    assert float(dense.backward(examples)) == pytest.approx(float(loss), rel=1e-13)
    for name, gradient in one_at_a_time.gradients.items():  # type: ignore[attr-defined]
        torch.testing.assert_close(dense.gradients()[name], gradient, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("micro_batches", [1, 8])
@pytest.mark.parametrize("given", [WORK, WINDOWED], ids=["full", "windows"])
def test_every_layout_and_number_of_micro_batches_gives_the_dense_gradient(
    variant: str, micro_batches: int, given: Workload
) -> None:
    work, chosen = given.with_(micro_batches=micro_batches), options(variant)
    examples, dense, reference = batch(work, 0, **chosen), Plain(given, False, False, **chosen), trained(variant, work)
    assert float(reference.backward(examples)) == pytest.approx(float(dense.backward(examples)), rel=1e-13)
    for name, gradient in dense.gradients().items():
        torch.testing.assert_close(reference.gradients()[name], gradient, rtol=1e-9, atol=1e-14)


def test_the_answer_and_its_end_are_learnt_and_nothing_else() -> None:
    tokens = [BOS, USER, 10, 11, END, ASSISTANT, 12, END, USER, 13, END, ASSISTANT, 14, 15, END]
    last = [IGNORED] * 12 + [14, 15, END]
    assert render(TALK, every=False) == Rendered(tokens, last)
    every = [*last]
    every[6:8] = 12, END
    assert render(TALK, every=True) == Rendered(tokens, every)


def test_the_dense_model_and_the_reference_learn_the_same_places() -> None:
    for keep in ("", "start", "end"):
        for every in (False, True):
            for example in batch(WORK, 1, keep=keep):
                text = truncate(render(example, every), WORK.sequence_length, keep)
                places = [place for place, label in enumerate(text.labels) if label != IGNORED]
                assert (text.tokens, places) == learnt(example, every, WORK.sequence_length, keep)


def test_truncation_keeps_a_side_and_never_learns_the_first_token() -> None:
    text = render(TALK, every=False)
    assert truncate(text, 13, "start") == Rendered(text.tokens[:13], [IGNORED] * 12 + [14])
    assert truncate(text, 3, "end") == Rendered([14, 15, END], [IGNORED, 15, END])
    assert truncate(text, 4, "start").labels == [IGNORED] * 4


def test_a_conversation_without_room_for_its_answer_and_an_empty_answer_have_finite_losses() -> None:
    prompt = Example([("user", [9] * 40), ("assistant", [8])])
    empty = Example([("user", [9]), ("assistant", [])])
    reference = trained("sft_truncated")
    assert reference.backward([prompt, empty]) == pytest.approx(float(trained("sft_padded").backward([empty])))
    assert all(gradient.isfinite().all() for gradient in reference.gradients().values())


def test_padding_is_hidden_and_the_end_that_looks_like_it_is_not() -> None:
    short, long = Example([("user", [9]), ("assistant", [8])]), TALK
    rows = layout([render(short, False), render(long, False)], [[0], [1]])
    assert PAD == END
    assert rows.labels[0].tolist() == [IGNORED] * 5 + [8, END] + [IGNORED] * 8
    assert rows.document[0].tolist() == [0] * 7 + [-1] * 8


def test_packed_rows_start_positions_anew_and_mask_other_documents() -> None:
    texts = [Rendered([1] * n, [IGNORED] * n) for n in (3, 2)]
    rows = layout(texts, [[0, 1]])
    assert rows.positions.tolist() == [[0, 1, 2, 0, 1]]
    seen = visible(rows.document)[0, 0]
    assert seen.tolist() == torch.block_diag(torch.ones(3, 3).tril(), torch.ones(2, 2).tril()).bool().tolist()


@pytest.mark.parametrize("lengths", [[], [5], [3, 9, 4, 4, 2, 10, 1, 7], [10, 10, 1]])
def test_packing_loses_no_conversation_and_overfills_no_row(lengths: list[int]) -> None:
    rows = first_fit(lengths, 10)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 10 for row in rows)
    assert len(rows) < 2 * max(1, math.ceil(sum(lengths) / 10)) or not lengths


def test_eager_attention_is_sdpa_s_formula_and_flex_s_rule_is_its_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 7, 6, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    document = torch.tensor([[0, 0, 0, 1, 1, 2, -1], [3] * 7])
    mask = visible(document)
    torch.testing.assert_close(eager(q, k, v, mask), sdpa(q, k, v, mask))
    row, head, i, j = torch.meshgrid(*(torch.arange(n) for n in (2, 1, 7, 7)), indexing="ij")
    for window in (0, 2, 7):
        tiles = WAYS["flex"][0](document, window)
        assert torch.equal(tiles.mask_mod(row, head, i, j), visible(document, window))


def test_a_window_reaches_back_over_so_many_places_of_its_own_document() -> None:
    seen = visible(torch.tensor([[0, 0, 0, 1, 1]]), 2)[0, 0].int()
    assert seen.tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]


def test_windows_inside_packed_documents_are_transformers_s_in_float64() -> None:
    pytest.importorskip("transformers")
    from impls.engines.hugging_face import decoder

    reference = trained("sft_packed", WINDOWED)
    rows = reference.rows(batch(WINDOWED, 0))
    model = decoder(WINDOWED, "sdpa")
    found = model(input_ids=rows.tokens, position_ids=rows.positions, use_cache=False).logits
    own = rows.document >= 0
    expected = reference.logits(rows, None)[own]
    off = (found[own] - expected).norm() / expected.norm()
    assert float(off.detach()) < 1e-6  # its norms are float32 in any precision


def test_positions_that_run_on_change_nothing_under_rope_but_wrong_boundaries_do() -> None:
    examples = batch(WORK, 0)
    reference = trained("sft_packed")
    rows = reference.rows(examples)
    run_on = torch.arange(rows.tokens.shape[1]).expand_as(rows.tokens).contiguous()
    changed = {
        "right": rows,
        "run on": rows._replace(positions=run_on),
        "joined": rows._replace(document=torch.zeros_like(rows.document)),
    }
    losses = {name: float(reference.loss(each, None).detach()) for name, each in changed.items()}
    assert losses["run on"] == pytest.approx(losses["right"], rel=1e-6)  # the tables of angles are float32
    assert losses["joined"] != pytest.approx(losses["right"], rel=1e-3)


def test_smoothing_is_a_mixture_with_the_uniform_distribution() -> None:
    examples = batch(WORK, 0)
    rows, loss = trained("sft_padded").rows(examples), {}
    for smoothing in (0.0, 0.1, 1.0):
        reference = SFT(WORK, Topology(), smoothing=smoothing)
        loss[smoothing] = float(reference.loss(rows, None).detach())
    assert loss[0.1] == pytest.approx(0.9 * loss[0.0] + 0.1 * loss[1.0])


def test_neftune_s_noise_is_uniform_and_shrinks_with_each_conversation_s_own_length() -> None:
    alpha, h = VARIANTS["sft_neftune"]["noise"], ODD.hidden_size
    reference = trained("sft_neftune")
    examples = [example for step in range(20) for example in batch(WORK, step, noise=alpha)]
    rows = reference.rows(examples)
    noise = reference.noises(examples, rows)
    assert torch.equal(noise[rows.document < 0], torch.zeros_like(noise[rows.document < 0]))
    every = []
    for n in range(len(examples)):
        own = noise[rows.document == n]
        every.append(own * (own.shape[0] * h) ** 0.5 / alpha)
        assert float(own.abs().max()) <= alpha / (own.shape[0] * h) ** 0.5
    u = torch.cat(every).flatten()
    error = u.std() / len(u) ** 0.5
    assert abs(float(u.mean())) <= 4 * float(error)
    assert float(u.square().mean()) == pytest.approx(1 / 3, rel=4 * (4 / 5 / len(u)) ** 0.5)  # var u² = 4/45


def residuals(shift: float) -> Tensor:
    """Of many batches: the loss of packed float32 rows × (1 + ``shift``) ÷ that of the float64 model, less 1."""
    dense, packed = Plain(WORK, False, False), trained("sft_packed", WORK.with_(dtype="fp32"))
    pairs = []
    for step in range(48):
        examples = batch(WORK, step)
        pairs.append(float(packed.backward(examples)) * (1 + shift) / float(dense.backward(examples)) - 1)
    return torch.tensor(pairs, dtype=torch.float64)


@pytest.mark.slow
def test_residuals_of_the_loss_have_mean_zero_and_a_one_sided_shift_has_not() -> None:
    """A shift smaller than the residual of a single step is seen in the mean of all."""
    found = residuals(0.0)
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean())) <= 4 * error
    shift = 10 * error
    assert abs(float(residuals(shift).mean())) > 4 * error
    assert shift < float(found.abs().max())


@pytest.mark.slow
def test_one_rank_with_eight_is_eight_ranks_with_one(lab: Lab) -> None:
    work = WORK.with_(dtype="fp32", lr=0.05)
    for micro_batches, ranks in ((1, 1), (8, 1), (1, 8), (2, 4)):
        case = Case(CARD.name, "sft_padded", "reference", Topology(dp=ranks), work.with_(micro_batches=micro_batches))
        assert {f.quantity: f.verdict for f in lab.measure("parity", case) if f.verdict != "pass"} == {}


def test_ranks_whose_conversations_fill_unequal_numbers_of_rows_step_together(lab: Lab) -> None:
    """One row and two, in two micro-batches: TRL gathers figures in each forward pass, for which all ranks wait."""
    work = WORK.with_(dtype="fp32", lr=0.05, batch_size=4, micro_batches=2, seed=1, steps=1)
    lengths = [len(render(example, False).tokens) for example in batch(work, 0)]
    assert [len(first_fit(own, work.sequence_length)) for own in (lengths[:2], lengths[2:])] == [1, 2]
    case = Case(CARD.name, "sft_packed", "trl", Topology(dp=2), work)
    assert {f.quantity: f.reason for f in lab.measure("parity", case) if f.verdict != "pass"} == {}


@pytest.mark.parametrize("engine", ["accelerate", "torch"])
def test_engines_with_sharded_weights_compute_what_the_dense_model_does(lab: Lab, engine: str) -> None:
    case = Case(CARD.name, "sft_sharded", engine, Topology(dp=2), WORK.with_(dtype="fp32", lr=0.05))
    assert {f.quantity: f.reason for f in lab.measure("parity", case) if f.verdict != "pass"} == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"sequence_length": 6}, "a conversation needs 7 tokens"), ({"data": "talk.jsonl"}, "needs a tokenizer")],
)
def test_work_that_holds_no_conversation_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        batch(WORK.with_(**change), 0)


@pytest.mark.parametrize("length", [7, 8, 13, 40])
def test_conversations_fit_the_context_unless_they_are_to_be_truncated(length: int) -> None:
    work = WORK.with_(sequence_length=length)
    for step in range(20):
        assert max(len(render(e, False).tokens) for e in batch(work, step)) <= length
        assert max(len(render(e, False).tokens) for e in batch(work, step, keep="end")) > length
