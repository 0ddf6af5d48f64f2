"""ZeRO's stages: the times at which tensors are whole, and work that no number of ranks divides."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from harness.launch.base import World
from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done, Job, describe
from harness.launch.rank import Context
from harness.run.lab import Lab
from harness.spec import Case, Topology
from harness.spec.named import NAMED
from impls.common.data import batch
from impls.parallelism import zero
from tests.impls.work import CLIPPED

CARD = zero.CARD
DP2, DP3 = Topology(dp=2), Topology(dp=3)
WORK = NAMED["tiny"]
# The root has the embedding and the norms; then follow each layer's attention and MLP, and the head.
UNITS = 1 + 2 * WORK.model.num_hidden_layers + 1


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with LocalLauncher() as launcher:
        world = launcher.world(2, "zero", __name__)
        yield world
        world.close()


def on_each_rank(world: World, job: str) -> list[Any]:
    outcomes = world.run(Job(f"{__name__}:{job}", {}), 60.0)
    assert all(isinstance(outcome, Done) for outcome in outcomes), describe(outcomes)
    return [outcome.value for outcome in outcomes]


@pytest.mark.parametrize("variant", CARD.variants)
def test_uneven_parts_micro_batches_and_clipping_on_three_ranks_are_those_of_the_dense_model(
    lab: Lab, variant: str
) -> None:
    work = CLIPPED.with_(batch_size=12)
    double, mixed = (Case(CARD.name, variant, "reference", DP3, work.with_(dtype=name)) for name in ("fp64", "bf16"))
    measurements = [*lab.measure("parity", double), *lab.measure("traffic", double), *lab.measure("memory", mixed)]
    assert {measurement.quantity for measurement in measurements} >= {"gradient", "update", "loss", "bytes", "states"}
    assert [measurement.reason for measurement in measurements if measurement.verdict != "pass"] == []


@pytest.mark.parametrize("variant", CARD.variants)
def test_layers_that_some_ranks_skip_in_some_micro_batches_have_the_gradients_of_the_others(
    lab: Lab, variant: str
) -> None:
    model = replace(CLIPPED.model, num_hidden_layers=3, stochastic_depth=True)
    work = CLIPPED.with_(name="skipping", model=model, batch_size=12, dtype="fp64")
    micro_batches = [pair for step in range(5) for pair in batch(work, step).inputs[:, 0].view(6, 2) % 3]
    assert {bool(first == second) for first, second in micro_batches} == {True, False}  # none passes a layer, or one
    measurements = lab.measure("parity", Case(CARD.name, variant, "reference", DP3, work))
    assert {measurement.quantity for measurement in measurements} >= {"gradient", "later gradients", "update", "loss"}
    assert [measurement.reason for measurement in measurements if measurement.verdict != "pass"] == []


def watched_units(context: Context) -> list[tuple[str, int]]:
    """The times at which stage 3 begins to gather each unit, waits for it and releases it."""
    from impls.parallelism.zero.hooks import Unit
    from impls.parallelism.zero.reference import build

    trainer = build(WORK, DP2, stage=3)
    units = list(trainer.stage.partitions)
    events: list[tuple[str, int]] = []

    def whole(unit: Unit) -> bool:
        return unit.weights.untyped_storage().size() > 0

    def note(unit: Unit, name: str) -> None:
        method = getattr(unit, name)

        def call() -> None:
            before = whole(unit)
            method()
            if name == "arrive" or whole(unit) != before:
                events.append((name, units.index(unit)))

        setattr(unit, name, call)

    for unit in units:
        for name in ("gather", "arrive", "release"):
            note(unit, name)
    trainer.backward(batch(WORK, 0))
    assert not any(whole(unit) for unit in units)
    return events


def test_stage_3_gathers_one_unit_ahead_in_both_passes_and_keeps_none(world: World) -> None:
    last = UNITS - 1
    for events in on_each_rank(world, "watched_units"):
        gathered = [unit for what, unit in events if what == "gather"]
        assert gathered == [*range(UNITS), 0, *range(last, 0, -1)]
        for index in range(1, last):  # the next unit is in transit when this one is waited for
            arrived = events.index(("arrive", index))
            assert events.index(("gather", index + 1)) < arrived < events.index(("release", index))
        there, most = set(), 0
        for what, unit in events:
            (there.discard if what == "release" else there.add)(unit)
            most = max(most, len(there))
        assert most == 3  # the root, the computing unit and the one ahead


def gradients_of_stage_2(context: Context) -> dict[str, Any]:
    """Elements of each bucket when its reduction begins, of other whole gradients then, and of those left at the
    end."""
    from impls.parallelism.zero.reference import build

    trainer = build(WORK, DP2, stage=2)
    begun: list[tuple[int, int]] = []
    reduce = trainer.stage.reducer.reduce

    def watched(bucket: Tensor) -> Callable[[], Tensor]:
        others = sum(p.grad.numel() for p in trainer.model.parameters() if p.grad is not None)
        begun.append((bucket.numel(), others))
        return reduce(bucket)

    trainer.stage.reducer.reduce = watched
    trainer.backward(batch(WORK, 0))
    left = sum(p.grad is not None for p in trainer.model.parameters())
    kept = sum(partition.gradient.numel() for partition in trainer.stage.partitions)
    return {"begun": begun, "left": left, "kept": kept}


def test_stage_2_reduces_a_bucket_as_soon_as_it_is_complete_and_keeps_its_part_alone(world: World) -> None:
    psi = WORK.model.parameters
    for found in on_each_rank(world, "gradients_of_stage_2"):
        whole = sum(bucket for bucket, _ in found["begun"])
        assert psi <= whole < psi + 2 * len(found["begun"])  # each padded to two equal parts
        # A parameter of another bucket may have its gradient, but never most of them.
        assert all(bucket + others < psi / 2 for bucket, others in found["begun"])
        assert found["left"] == 0
        assert found["kept"] == whole / 2


def gradients_of_stage_1(context: Context) -> bool:
    """Whether each gradient is still a part of the single flat buffer after a step."""
    from impls.parallelism.zero.reference import build

    trainer = build(WORK.with_(micro_batches=2), DP2, stage=1)
    for step in range(2):
        trainer.backward(batch(WORK, step))
        trainer.update()
    buffer = trainer.stage.gradients.untyped_storage().data_ptr()
    return all(p.grad.untyped_storage().data_ptr() == buffer for p in trainer.model.parameters())


def test_stage_1_adds_up_gradients_in_one_buffer(world: World) -> None:
    assert on_each_rank(world, "gradients_of_stage_1") == [True, True]
