"""PipeDream and 2BW compute the same as the dense model with their delays, and keep as many versions as promised."""

import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, Topology, Workload
from impls.parallelism.pipeline_parallel import CARD, laws
from impls.parallelism.pipeline_parallel.plain import options
from impls.parallelism.pipeline_parallel.plan import Plan
from impls.parallelism.pipeline_parallel.schedules import ASYNCHRONOUS, SCHEDULES
from tests.impls.layouts import wrong

MODEL = ModelConfig(31, 12, 20, 4, 2, 1, 6)
SMALL = Workload("small_pipe", MODEL, batch_size=8, micro_batches=8, sequence_length=3, dtype="fp64")


@st.composite
def layouts(draw: st.DrawFn) -> Case:
    """Small, odd work: with or without data parallelism, SGD or AdamW, one length or many, tied weights in one
    stage."""
    name = draw(st.sampled_from(ASYNCHRONOUS))
    pp, dp = draw(st.sampled_from([(1, 2), (2, 1), (2, 2), (4, 1)]))
    micro_batches = draw(st.sampled_from([1, 3, 4, 8] if name == "pipedream" else [pp, 4, 8]))
    # With so large an epsilon AdamW does not hide a wrong scale.
    optimizer = draw(st.sampled_from([{}, {"optimizer": "adamw", "lr": 1.0, "eps": 1.0, "weight_decay": 0.1}]))
    work = Workload(
        "drawn",
        ModelConfig(**{**vars(MODEL), "tie_word_embeddings": pp == 1 and draw(st.booleans())}),
        batch_size=dp * micro_batches * draw(st.integers(1, 2)),
        micro_batches=micro_batches,
        sequence_length=draw(st.sampled_from([3, 8])),
        min_length=draw(st.sampled_from([0, 2])),
        dtype="fp64",
        **optimizer,
    )
    return Case(CARD.name, name, "reference", Topology(dp=dp, pp=pp), work)


@settings(max_examples=3)
@given(case=layouts())
def test_any_layout_computes_what_the_dense_model_does_with_its_delays(lab: Lab, case: Case) -> None:
    assert wrong(lab, case) == []


@pytest.mark.parametrize(("name", "size"), [("pipedream", (3, 6)), ("pipedream_2bw", (3, 9))])
def test_a_stage_computes_with_the_versions_drawn_in_the_docstring(name: str, size: tuple[int, int]) -> None:
    lines = (inspect.getdoc(SCHEDULES[name]) or "").splitlines()
    drawn = [line.split()[-1] for line in lines if "versions, stage" in line]
    assert drawn == ["".join(map(str, versions)) for versions in SCHEDULES[name](*size).versions]


def stashed(plan: Plan, rank: int) -> int:
    """The most versions of a rank's weights that are the newest, or that a later backward pass needs, at any time."""
    updates = most = 0
    actions = plan.actions[rank]
    for at, action in enumerate(actions):
        updates += action.kind == "U"
        needed = {plan.versions[rank][a.micro] for a in actions[at + 1 :] if a.kind == "B"}
        most = max(most, len({version for version in needed if version <= updates} | {updates}))
    return most


@given(name=st.sampled_from(ASYNCHRONOUS), p=st.integers(1, 5), m=st.integers(1, 12))
def test_as_many_versions_are_kept_as_the_law_says(name: str, p: int, m: int) -> None:
    m = m if name == "pipedream" else m * p
    plan = SCHEDULES[name](p, m)
    assert [stashed(plan, rank) for rank in range(p)] == [laws.versions(name, p, m, rank) for rank in range(p)]


def test_the_dense_model_and_the_schedule_agree_on_the_versions() -> None:
    for name in ASYNCHRONOUS:
        dense = options(SMALL, Topology(pp=4), name)
        assert dense is not None
        of_micro = SMALL.micro_batches // dense["mini_batches"]
        expected = [[max(0, i // of_micro - delay) for i in range(8)] for delay in dense["delays"]]
        assert [list(versions) for versions in SCHEDULES[name](4, 8).versions] == expected


def test_an_update_costs_no_flush() -> None:
    """A flush after each group of p micro-batches would leave (p − 1)/(2p − 1) of the time idle."""
    flushed = laws.bubble(SMALL.with_(micro_batches=4), Topology(pp=4), schedule="gpipe")
    assert flushed == pytest.approx(3 / 7)
    for name in ASYNCHRONOUS:
        assert laws.bubble(SMALL, Topology(pp=4), schedule=name) == pytest.approx(3 / 11)


@pytest.mark.parametrize(
    ("variant", "changes", "reason"),
    [
        ("pipedream", {"max_grad_norm": 1.0}, "clipping would take a flush"),
        ("pipedream", {"model": ModelConfig(tie_word_embeddings=True)}, "the last stage would wait for the first one"),
        ("pipedream_2bw", {"micro_batches": 1}, "an update of p micro-batches: 2 does not divide 1"),
    ],
)
def test_work_that_needs_a_flush_is_skipped_with_the_reason(
    lab: Lab, variant: str, changes: dict[str, object], reason: str
) -> None:
    work = SMALL.with_(name=f"{variant}_{len(reason)}", **changes)
    (found,) = lab.measure("parity", Case(CARD.name, variant, "reference", Topology(pp=2), work))
    assert found.verdict == "skipped"
    assert reason in found.reason
