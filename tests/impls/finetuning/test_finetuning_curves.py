"""The task of the learning curves, the base model that starts them, and the references' runs on it."""

import math
from typing import Any

import pytest
import torch

from harness.judge.residuals import judge
from harness.run.lab import Lab
from harness.spec import Case, Curves, Topology, Workload
from harness.spec.files import InputError
from impls.common.data import IGNORED
from impls.common.weights import build_model
from impls.finetuning.finetuning_curves import CARD, claims, reference, task
from impls.finetuning.finetuning_curves.grid import DESCENT, DIGITS, STEPS
from impls.finetuning.sft.data import ASSISTANT, BOS, END, USER

SEEDS = 3


def work_of(variant: str) -> Workload:
    return DESCENT if variant == "curve_lora_sgd" else DIGITS


def draws(held_out: bool) -> torch.Tensor:
    return task.strings(2000, held_out, torch.Generator().manual_seed(1))


def test_no_string_that_is_held_out_is_trained_on() -> None:
    trained, held_out = ({tuple(row) for row in draws(held).tolist()} for held in (False, True))
    assert not trained & held_out
    for held, rows in ((False, trained), (True, held_out)):
        assert all((sum(row) % task.HOLDS_OUT == 0) == held for row in rows)
        assert {digit for row in rows for digit in row} == set(range(task.DIGITS))


def test_a_conversation_asks_for_an_operation_and_learns_its_answer_alone() -> None:
    (example,) = task.examples(task.NEW, task.complement, torch.tensor([[3, 1, 4, 1, 5]]))
    question, answer = ([task.ZERO + digit for digit in digits] for digits in ((3, 1, 4, 1, 5), (6, 8, 5, 8, 4)))
    inputs, labels = task.batch([example])
    whole = [BOS, USER, task.NEW, *question, END, ASSISTANT, *answer, END]
    assert inputs.tolist() == [whole[:-1]]
    assert labels.tolist() == [[IGNORED] * (len(whole) - 2 - len(answer)) + [*answer, END]]
    assert len(whole) == task.TOKENS


def test_steps_are_the_same_for_every_engine_and_others_for_every_seed() -> None:
    rows = task.rows(DIGITS, 64, "successor")
    batches = list(task.batches(DIGITS, 64, "successor"))
    assert [row["input_ids"][:-1] for row in rows] == [
        row for each in batches for row in task.batch(each).inputs.tolist()
    ]
    assert [row["labels"][1:] for row in rows] == [row for each in batches for row in task.batch(each).labels.tolist()]
    assert task.rows(DIGITS.with_(seed=1), 64, "successor") != rows


def test_an_answer_is_right_if_the_model_would_write_it_alone() -> None:
    labels = torch.tensor([[IGNORED, 1, 2], [IGNORED, 2, 1], [IGNORED, 0, 0]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2], [2, 2, 2], [1, 0, 0]]), 3).float()
    assert task.exact_matches(logits, labels) == pytest.approx(2 / 3)


def test_the_base_knows_its_two_operations_and_nothing_of_the_third() -> None:
    with task.pretrained(DIGITS, 0, 1e-3) as work:
        model = build_model(work)
    known = {task.REPEAT: task.repeat, task.SUCCESSOR: task.successor}
    with torch.no_grad():
        for operation, rule in known.items():
            batch = task.batch(task.examples(operation, rule, draws(held_out=True)))
            assert task.exact_matches(model(batch.inputs), batch.labels) > 0.9
        for name in task.RULES:
            batch = task.batch(task.held_out(name))
            assert task.exact_matches(model(batch.inputs), batch.labels) < 0.1


def test_the_learning_rate_rises_from_zero_and_stays() -> None:
    shares = [reference.share(step) for step in range(2 * task.WARM_UP)]
    assert shares[: task.WARM_UP] == [step / task.WARM_UP for step in range(task.WARM_UP)]
    assert set(shares[task.WARM_UP :]) == {1.0}


def taken(lab: Lab, variant: str, work: Workload) -> list[Curves]:
    """The reference's runs with a few seeds."""
    case = Case(CARD.name, variant, "reference", Topology(), work)
    found = lab.runner.once(case, "harness.measures.learning:curves", seeds=SEEDS, budget=CARD.contract.budget)
    assert isinstance(found, list), found
    return found[0]


@pytest.mark.parametrize("variant", CARD.variants)
def test_every_method_learns_the_task(lab: Lab, variant: str) -> None:
    for run in taken(lab, variant, work_of(variant)):
        assert run.scores[0] < 0.1
        assert run.scores[-1] > 0.9
        assert run.samples[-1] == CARD.contract.budget
        assert len(run.losses) == STEPS
        assert run.losses[0] > 10 * run.losses[-1]


def test_an_adapted_model_begins_as_the_base(lab: Lab) -> None:
    full, lora = (taken(lab, variant, DIGITS) for variant in ("curve_sft", "curve_lora"))
    assert [run.losses[0] for run in lora] == pytest.approx([run.losses[0] for run in full], rel=1e-5)


def test_accumulated_micro_batches_differ_by_chance_alone(lab: Lab) -> None:
    whole = taken(lab, "curve_lora", DIGITS)
    apart = taken(lab, "curve_lora", DIGITS.with_(name="in_parts", micro_batches=4))
    assert [run.losses for run in apart] != [run.losses for run in whole]
    assert judge(apart, whole, "fp32").verdict == "pass"


def test_work_that_is_not_this_topic_s_is_refused() -> None:
    for changes, words in (({"weights": "folder"}, "weights"), ({"sequence_length": 8}, f"{task.TOKENS} tokens")):
        with pytest.raises(InputError, match=words), task.pretrained(DIGITS.with_(**changes), 0, 1e-3):
            pass


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "variant"), [("transformers", "curve_sft"), ("peft", "curve_lora")])
def test_a_library_s_own_loop_keeps_to_the_reference_with_micro_batches_too(
    lab: Lab, engine: str, variant: str
) -> None:
    pytest.importorskip(engine)
    work = work_of(variant).with_(name="accumulated", micro_batches=2)
    found = lab.measure("learning", Case(CARD.name, variant, engine, Topology(), work))
    assert {each.quantity: each.verdict for each in found} == dict.fromkeys(("score", "samples", "residuals"), "pass")


class TestClaim:
    def records(self, library: list[list[float]], ours: list[list[float]]) -> list[dict[str, Any]]:
        sides = {"curves": library, "reference_curves": ours}
        detail: dict[str, Any] = {name: [[[1, 2, 3], run] for run in runs] for name, runs in sides.items()}
        detail["results"] = [run[-1] for run in library]
        return [{"measure": "learning", "quantity": "score", "engine": "peft", "variant": "v", "detail": detail}]

    def test_as_fast_or_faster_is_reproduced(self) -> None:
        slow, fast = [0.1, 0.5, 1.0], [0.1, 0.95, 1.0]
        for ours in ([slow] * 3, [fast] * 3, [slow, slow, fast]):
            found = claims.reaches_the_peer(self.records([slow] * 3, ours))
            assert found.detail["status"] == "reproduced"

    def test_slower_with_every_seed_or_never_is_contradicted(self) -> None:
        slow, fast, never = [0.1, 0.5, 1.0], [0.1, 0.95, 1.0], [0.1, 0.2, 0.3]
        for ours in ([slow] * 3, [fast, fast, never]):
            found = claims.reaches_the_peer(self.records([fast] * 3, ours))
            assert found.detail["status"] == "contradicted"

    def test_without_curves_of_a_library_it_is_out_of_reach(self) -> None:
        records = self.records([[0.1, 0.5, 1.0]], [[0.1, 0.5, 1.0]])
        for without in ([], [records[0] | {"engine": "reference"}], [records[0] | {"detail": None}]):
            assert claims.reaches_the_peer(without).detail["status"] == "out of reach here"
        assert math.isinf(claims.reached([1, 2], [0.0, 0.1], 0.9))
