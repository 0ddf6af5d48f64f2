"""Fine-tuning on a cut sequence: the parts of a row hold all of it, each label once, and positions that go on."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, Topology, Workload
from impls.common.data import IGNORED
from impls.finetuning.sft.data import batch
from impls.finetuning.sft.template import Rows, render
from impls.finetuning.sft_ulysses import CARD
from impls.finetuning.sft_ulysses.laws import traffic
from impls.finetuning.sft_ulysses.reference import UlyssesSFT

WORK = Workload("odd_cut", ModelConfig(97, 24, 40, 2, 4, 2, 6), batch_size=8, sequence_length=32, lr=0.05)


def parts(ranks: int, packing: str, step: int = 0) -> tuple[Rows, list[Rows]]:
    """The rows of a step's batch, and each rank's part of them."""
    places = [SimpleNamespace(workload=WORK, packing=packing, U=ranks, part=part) for part in range(ranks)]
    whole = UlyssesSFT.rows(places[0], batch(WORK, step))
    return whole, [UlyssesSFT.own(place, whole) for place in places]


@pytest.mark.parametrize("packing", ["", "rows"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_parts_of_a_row_are_all_of_it_and_every_token_is_learnt_once(ranks: int, packing: str) -> None:
    whole, found = parts(ranks, packing)
    assert whole.tokens.shape[1] % ranks == 0
    for name in ("tokens", "labels", "positions"):
        assert torch.equal(torch.cat([getattr(each, name) for each in found], dim=1), getattr(whole, name))
    assert all(torch.equal(each.document, whole.document) for each in found)
    learnt = [label for example in batch(WORK, 0) for label in render(example, False).labels if label != IGNORED]
    labels = torch.cat([each.labels[each.labels != IGNORED] for each in found]).tolist()
    assert sorted(labels) == sorted(learnt)


def test_the_label_of_a_part_s_last_place_is_the_next_part_s_first_token() -> None:
    crossed = 0
    for step in range(8):
        whole, found = parts(4, "", step)
        for place, (first, second) in enumerate(pairwise(found), 1):
            ends, n = first.labels[:, -1] != IGNORED, first.tokens.shape[1]
            assert torch.equal(first.labels[ends, -1], second.tokens[ends, 0])
            goes_on = whole.document[:, place * n] >= 0
            assert (second.positions[goes_on, 0] == place * n).all()
            crossed += int(ends.sum())
    assert crossed


def test_heads_that_cannot_be_divided_are_named(lab: Lab) -> None:
    narrow = WORK.with_(model=ModelConfig(97, 24, 40, 2, 3, 3, 8))
    (found,) = lab.measure("parity", Case(CARD.name, "sft_ulysses", "reference", Topology(cp=2), narrow))
    assert (found.verdict, "3 query heads cannot be distributed to 2 ranks" in found.reason) == ("skipped", True)


def test_longer_sequences_send_more_and_the_gradients_do_not() -> None:
    ranks, gradients = Topology(cp=4), 2 * 3 / 4 * WORK.model.parameters * 4
    once, twice = (traffic(WORK.with_(sequence_length=length), ranks) - gradients for length in (32, 64))
    assert twice == 2 * once > 0
