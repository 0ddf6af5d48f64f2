"""Pipelines of any layout compute the same as the dense model, send what the law says, and reject impossible work."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, Topology, Workload
from impls.common.cuts import split
from impls.parallelism import model_parallel, pipeline_parallel
from impls.parallelism.pipeline_parallel.executor import in_turn
from impls.parallelism.pipeline_parallel.messages import Channel, Messages, channels
from impls.parallelism.pipeline_parallel.plan import Action, homes
from impls.parallelism.pipeline_parallel.schedules import ASYNCHRONOUS, SCHEDULES, gpipe, zb_v
from tests.impls.layouts import wrong

CARDS = {card.name: card for card in (pipeline_parallel.CARD, model_parallel.CARD)}


@st.composite
def layouts(draw: st.DrawFn) -> Case:
    """Small, odd work: tied or not, clipped or not, one length or many, with or without data parallelism."""
    name = draw(st.sampled_from(sorted(set(SCHEDULES) - set(ASYNCHRONOUS))))
    pp, dp = draw(st.sampled_from([(2, 1), (2, 2), (4, 1)]))
    micro_batches = draw(st.sampled_from([2 * pp, 8]))
    work = Workload(
        "drawn",
        ModelConfig(31, 12, 20, 8, 2, 1, 6, tie_word_embeddings=draw(st.booleans())),
        batch_size=dp * micro_batches * draw(st.integers(1, 2)),
        micro_batches=micro_batches,
        sequence_length=draw(st.sampled_from([3, 8])),
        min_length=draw(st.sampled_from([0, 2])),
        max_grad_norm=draw(st.sampled_from([0.0, 0.3])),
        dtype="fp64",
    )
    return Case("pipeline_parallel", name, "reference", Topology(dp=dp, pp=pp), work)


# All members of its ensemble round one norm's update alike to the last bit.
ALIKE = Workload(
    "drawn", ModelConfig(31, 12, 20, 8, 2, 1, 6, tie_word_embeddings=True), 8, 4, 3, 2, max_grad_norm=0.3, dtype="fp64"
)

# All errors of one gain are small except the pipeline's.
UNLUCKY = ALIKE.with_(batch_size=16, micro_batches=8, max_grad_norm=0.0)


@settings(max_examples=2)
@given(case=layouts())
@example(case=Case("pipeline_parallel", "1f1b", "reference", Topology(pp=2), ALIKE))
@example(case=Case("pipeline_parallel", "dual_pipe", "reference", Topology(pp=2), ALIKE))  # all counts on rank 0
@example(case=Case("pipeline_parallel", "1f1b", "reference", Topology(dp=2, pp=2), UNLUCKY))
def test_any_schedule_on_any_layout_computes_what_the_dense_model_does(lab: Lab, case: Case) -> None:
    assert wrong(lab, case) == []


def test_micro_batches_go_through_the_naive_pipeline_one_after_the_other(lab: Lab) -> None:
    work = Workload("two", ModelConfig(31, 12, 20, 4, 2, 1, 6), batch_size=4, micro_batches=2, dtype="fp64")
    assert wrong(lab, Case("model_parallel", "layers", "reference", Topology(pp=2), work)) == []


@pytest.mark.parametrize(
    ("variant", "work", "reason"),
    [
        ("interleaved", Workload(micro_batches=1), "a multiple of p micro-batches: 2 does not divide 1"),
        (
            "dual_pipe",
            Workload(micro_batches=1),
            "at least 2p, not 2 and 1",
        ),
        ("zb_v", Workload(model=ModelConfig(num_hidden_layers=2)), "2 layers do not fill 4 stages"),
    ],
)
def test_work_that_a_schedule_cannot_do_is_skipped_with_the_reason(
    lab: Lab, variant: str, work: Workload, reason: str
) -> None:
    (found,) = lab.measure(
        "parity", Case("pipeline_parallel", variant, "reference", Topology(pp=2), work.with_(name=variant))
    )
    assert found.verdict == "skipped"
    assert reason in found.reason


@pytest.mark.parametrize("cores", [1, 2])
def test_ranks_that_share_cores_are_watched_by_their_own_time(lab: Lab, cores: int) -> None:
    """No time passes while a rank waits, as the first one does for its gradients."""
    work = Workload("work", ModelConfig(num_hidden_layers=2), batch_size=8, micro_batches=4)
    case = Case("pipeline_parallel", "1f1b", "reference", Topology(pp=2), work)
    rounds = lab.runner.run(case, "harness.measures.timeline:watch", cores=cores)
    assert isinstance(rounds, list)
    assert [len(spans) for spans in rounds[0]] == [8] * len(rounds[0])
    whole = sum(spans[-1].end - spans[0].start for spans in rounds[0])
    busy = sum(s.end - s.start for spans in rounds[0] for s in spans)
    assert (busy / whole > 0.95) is (cores == 1)


def test_the_next_message_is_awaited_while_this_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[tuple[Channel, int]] = []

    class Work:
        def wait(self) -> None: ...

    def irecv(_: Tensor, group: Channel, group_src: int) -> Work:
        posted.append((group, group_src))
        return Work()

    monkeypatch.setattr(dist, "irecv", irecv)
    plan = gpipe(2, 2)
    groups: Any = {channel: channel for channel in channels(plan)}
    messages = Messages(plan, 1, groups, torch.empty(1))
    assert posted == [(("F", True), 0)]
    for micro in range(2):
        messages.receive(Action("F", 1, micro))
        messages.ahead(Action("F", 1, micro))
        assert posted == [(("F", True), 0)] * 2
    assert messages.receive(Action("B", 1, 0)) is None


def test_a_slot_of_two_passes_computes_a_layer_of_each_in_turn() -> None:
    done: list[str] = []

    def steps(name: str, layers: int) -> Iterator[None]:
        for layer in range(layers):
            done.append(f"{name}{layer}")
            yield
        done.append(name)

    slot = {Action(kind, 0, 0): steps(kind, layers) for kind, layers in {"F": 3, "B": 2, "W": 0}.items()}
    assert set(in_turn(slot, None)) == set(slot)
    assert done == ["F0", "B0", "F1", "B1", "F2", "B", "F", "W"]


def test_the_first_stages_have_a_layer_more_where_stages_do_not_divide_them() -> None:
    assert [len(layers) for layers in split(7, 4)] == [2, 2, 2, 1]
    assert [layer for layers in split(7, 4) for layer in layers] == list(range(7))


def test_a_v_has_both_ends_on_the_first_rank_and_a_tied_embedding_once() -> None:
    config = ModelConfig(num_hidden_layers=4, tie_word_embeddings=True)
    found = homes(config, zb_v(2, 4))
    assert found["model.embed_tokens.weight"] == found["model.norm.weight"] == (0,)
    assert found["model.layers.1.mlp.up_proj.weight"] == found["model.layers.2.mlp.up_proj.weight"] == (1,)
