"""Hybrid sharding: groups of every size, uneven and clipped work, traffic across groups, and rejected work."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.run.lab import Lab
from harness.spec import Case, Topology, Workload
from harness.spec.named import NAMED
from impls.parallelism import hybrid_shard
from impls.parallelism.hybrid_shard import laws
from impls.parallelism.zero import laws as zero_laws
from tests.impls.work import CLIPPED

DP2, DP4 = Topology(dp=2), Topology(dp=4)
SIZES = {
    f"{name}_by_{group}": {**hybrid_shard.CARD.variants[name], "group": group}
    for name, group in (("mics", 2), ("mics", 4), ("hsdp", 1), ("hsdp_zero1", 2))
}
CARD = replace(hybrid_shard.CARD, variants={**hybrid_shard.CARD.variants, **SIZES, "threes": {"group": 3}})


def case(variant: str, workload: Workload, topology: Topology = DP4, engine: str = "reference") -> Case:
    return Case(CARD.name, variant, engine, topology, workload)


@pytest.mark.parametrize("variant", SIZES)
def test_groups_of_any_size_compute_what_the_dense_model_does(lab: Lab, variant: str) -> None:
    work = CLIPPED.with_(dtype="fp64")
    measurements = lab.measure("parity", case(variant, work))
    assert {measurement.quantity for measurement in measurements} >= {"gradient", "update", "loss"}
    traffic = lab.measure("traffic", case(variant, work))
    assert {measurement.quantity for measurement in traffic} == {"bytes", "across_groups"}
    assert [f.reason for f in [*measurements, *traffic] if f.verdict != "pass"] == []


@pytest.mark.parametrize(("variant", "engine"), [("mics", "torch"), ("hsdp", "torch"), ("hsdp_zero1", "megatron")])
def test_an_engine_clips_by_the_norm_of_one_group_and_not_of_all_replicas(lab: Lab, variant: str, engine: str) -> None:
    measurements = lab.measure("parity", case(variant, CLIPPED, DP4, engine))
    assert {measurement.quantity for measurement in measurements} >= {"gradient", "update", "loss"}
    assert [measurement.reason for measurement in measurements if measurement.verdict != "pass"] == []


def test_two_hops_cross_once_where_hsdp_crosses_for_every_micro_batch(lab: Lab) -> None:
    work = NAMED["accumulated"]
    bytes_, calls = {}, {}
    for variant in ("hsdp", "mics"):
        total, across = lab.measure("traffic", case(variant, work))
        bytes_[variant], calls[variant] = across.value, total.detail["by_op"]["all_reduce"]["calls"]
    assert bytes_["mics"]
    assert (bytes_["hsdp"], calls["hsdp"]) == (work.micro_batches * bytes_["mics"], work.micro_batches * calls["mics"])


@pytest.mark.parametrize(
    ("variant", "engine", "topology", "verdict", "reason"),
    [
        ("mics", "deepspeed", DP2, "skipped", "MiCS ZeRO-3 sharding has been removed"),
        ("hsdp_zero1", "megatron", DP4, "skipped", "takes Adam only, not sgd"),
        ("threes", "reference", DP4, "skipped", "dp 4 is not a multiple of its groups of 3 ranks"),
    ],
)
def test_impossible_work_is_skipped_with_the_reason(
    lab: Lab, variant: str, engine: str, topology: Topology, verdict: str, reason: str
) -> None:
    (measurement,) = lab.measure("parity", case(variant, Workload(), topology, engine))
    assert measurement.verdict == verdict
    assert reason in measurement.reason


WORK = st.builds(
    Workload,
    batch_size=st.just(48),
    micro_batches=st.integers(1, 3),
    dtype=st.sampled_from(["fp64", "fp32", "bf16"]),
    optimizer=st.sampled_from(["sgd", "adamw"]),
)
VARIANT = st.sampled_from([{"stage": 1}, {"stage": 3}, {"stage": 3, "two_hop": True}])


@given(WORK, VARIANT, st.integers(1, 8))
def test_one_group_of_all_ranks_is_zero_and_nothing_crosses(work: Workload, variant: dict, ranks: int) -> None:
    topology = Topology(dp=ranks)
    assert laws.across(work, topology, ranks, **variant) == 0
    assert laws.traffic(work, topology, ranks, **variant) == (zero_laws.traffic(work, topology, variant["stage"]) or 0)
    assert laws.states(work, topology, ranks, **variant) == zero_laws.states(work, topology, variant["stage"])


@given(WORK, VARIANT, st.integers(1, 4), st.integers(2, 4))
def test_states_depend_on_the_groups_size_alone_and_only_gradients_cross(
    work: Workload, variant: dict, group: int, replicas: int
) -> None:
    topology = Topology(dp=group * replicas)
    assert laws.states(work, topology, group, **variant) == laws.states(work, Topology(dp=group), group, **variant)
    shard = work.model.parameters * work.element_size / group
    ring = 2 * (replicas - 1) / replicas * shard
    crossings = laws.across(work, topology, group, **variant) / ring
    every = "two_hop" not in variant and variant["stage"] == 3
    assert crossings == pytest.approx(work.micro_batches if every else 1)
