"""Adapters of cut matrices: gradients are those of whole ones, and laws count the bytes."""

from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, Topology, Workload
from impls.finetuning.lora_parallel import CARD
from impls.finetuning.lora_parallel.laws import traffic

ODD = Workload("odd_cuts", ModelConfig(97, 24, 40, 2, 4, 2, 6), batch_size=6, sequence_length=11)


def test_the_sum_of_gradients_does_not_grow_with_the_tokens() -> None:
    rank, alpha = 4, 8.0
    added = {}
    for low in (False, True):
        one, two = (
            traffic(ODD.with_(batch_size=size), Topology(tp=2), rank=rank, alpha=alpha, low=low) for size in (6, 12)
        )
        assert one is not None
        assert two is not None
        added[low] = 2 * one - two  # what does not grow
    assert added == {False: 2 * 4 * 24 * 4, True: 0}
    assert traffic(ODD, Topology(), rank=rank, alpha=alpha, low=False) is None


def test_cut_matrices_of_uneven_sizes_have_the_gradients_of_whole_ones(lab: Lab) -> None:
    for variant in CARD.variants:
        case = Case(CARD.name, variant, "reference", Topology(tp=2), ODD)
        for measure in ("parity", "traffic"):
            wrong = {found.quantity: found.reason for found in lab.measure(measure, case) if found.verdict != "pass"}
            assert wrong == {}
