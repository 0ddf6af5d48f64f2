"""ZeRO++ on two and four CPU ranks: groups, micro-batches and lengths that the suites do not have, and DeepSpeed's
modes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, Topology, Workload
from harness.spec.named import NAMED
from impls.parallelism import zero_plus_plus
from impls.parallelism.zero_plus_plus import claims, laws
from impls.parallelism.zero_plus_plus.quantisation import BLOCK

DP2, DP4 = Topology(dp=2), Topology(dp=4)
ALL = zero_plus_plus.CARD.variants["zeropp"]
OTHER = {
    "each_a_group": {**ALL, "group": 1},
    "one_group": {**ALL, "group": 4},
    "eight_bits": {**ALL, "gradient_bits": 8},
    "four_bit_weights": {**ALL, "weight_bits": 4, "gradient_bits": 0},
    "groups_of_three": {**ALL, "group": 3},
}
CARD = replace(zero_plus_plus.CARD, variants={**zero_plus_plus.CARD.variants, **OTHER})
# Only the heads' sizes are even: there is padding, and shards end inside a block.
UNEVEN = Workload(
    "uneven_blocks", ModelConfig(131, 45, 77, 2, 4, 4, 6, tie_word_embeddings=True), sequence_length=13, dtype="fp64"
)
# Ranks and micro-batches have different numbers of tokens; with so large an epsilon AdamW does not hide a wrong norm.
UNEQUAL = Workload(
    "unequal_clipped",
    UNEVEN.model,
    batch_size=16,
    micro_batches=2,
    sequence_length=13,
    min_length=4,
    optimizer="adamw",
    lr=1.0,
    eps=1.0,
    weight_decay=0.1,
    max_grad_norm=0.3,
    dtype="fp64",
)


def case(variant: str, engine: str = "reference", topology: Topology = DP4, workload: Workload = UNEVEN) -> Case:
    return Case(CARD.name, variant, engine, topology, workload)


@pytest.mark.parametrize(
    ("variant", "workload"),
    [
        pytest.param("each_a_group", UNEVEN, marks=pytest.mark.slow),
        pytest.param("one_group", UNEVEN, marks=pytest.mark.slow),
        ("eight_bits", UNEQUAL),
        pytest.param("four_bit_weights", UNEVEN, marks=pytest.mark.slow),
        ("zeropp", UNEQUAL),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_reference_computes_what_the_dense_model_does_and_sends_what_the_law_says(
    lab: Lab, variant: str, workload: Workload
) -> None:
    asked = case(variant, workload=workload)
    measurements = lab.measure("parity", asked)
    assert {measurement.quantity for measurement in measurements} >= {"gradient", "update", "loss"}
    assert [measurement.reason for measurement in measurements if measurement.verdict != "pass"] == []
    # In float64 every rounding decision is certain: the floor cannot hide a fault.
    assert measurements[0].detail["floor"] < 1e-12
    sent, across = lab.measure("traffic", asked)
    assert (sent.value, across.value) == (sent.law, across.law)


def test_groups_that_do_not_divide_the_ranks_are_skipped_with_the_reason(lab: Lab) -> None:
    (measurement,) = lab.measure("parity", case("groups_of_three"))
    assert measurement.verdict == "skipped"
    assert "dp 4 is not a multiple of its groups of 3 ranks" in measurement.reason


@pytest.mark.parametrize(("variant", "topology"), [("qwz", DP2), ("qgz", DP4)], ids=str)
def test_deepspeed_has_no_kernels_that_quantise_on_a_cpu(lab: Lab, variant: str, topology: Topology) -> None:
    (measurement,) = lab.measure("parity", case(variant, "deepspeed", topology, NAMED["tiny"]))
    assert measurement.verdict == "skipped"
    assert "not been implemented on CPU backend" in measurement.reason


def test_deepspeeds_qgz_is_zero_3_on_one_node_and_says_so(lab: Lab) -> None:
    sent, _ = lab.measure("traffic", case("qgz", "deepspeed", DP2, NAMED["tiny"]))
    model = NAMED["tiny"].model
    assert sent.value == 3 * model.parameters * 4 / 2
    assert "no effect on one node" in sent.detail["fallback"]


def test_fsdp2_keeps_the_backward_gather_in_the_group_too(lab: Lab) -> None:
    ours, theirs = (
        lab.measure("traffic", case("hpz", engine, DP4, NAMED["tiny"])) for engine in ("reference", "torch")
    )
    assert [measurement.value for measurement in ours] == [measurement.value for measurement in theirs]


def test_padding_of_fsdp2_may_leave_the_group(lab: Lab) -> None:
    measurements = lab.measure("traffic", case("hpz", "torch"))
    assert [measurement.verdict for measurement in measurements] == ["pass", "pass"]
    assert measurements[1].value > measurements[1].law


def test_the_laws_know_the_units_and_blocks(lab: Lab) -> None:
    assert sum(laws.units(UNEVEN.model)) == UNEVEN.model.parameters
    assert len(laws.units(UNEVEN.model)) == 1 + 2 * UNEVEN.model.num_hidden_layers
    assert any(unit % 4 and -(-unit // 4) % BLOCK for unit in laws.units(UNEVEN.model))


@pytest.mark.parametrize("element_size", [2, 4])
def test_many_large_groups_leave_a_quarter_of_the_traffic_and_the_scales(element_size: int) -> None:
    """The paper's limit, a node's bytes over M: a ring counts once, the second hop once per rank."""
    work = Workload(
        "large",
        ModelConfig(4096, 1024, 4096, 8, 16, 16, 64),
        batch_size=1024,
        dtype={2: "bf16", 4: "fp32"}[element_size],
    )
    topology, group = Topology(dp=1024), 16
    whole = work.model.parameters * element_size
    gather = laws.across(work, topology, **{**ALL, "gradient_bits": 0, "group": group}) - whole * 1023 / 1024
    hop = laws.across(work, topology, **{**ALL, "group": group}) - gather
    expected = (1 + 4 / BLOCK + 1 / 2 + 4 / BLOCK) / element_size
    assert (gather + group * hop) / whole == pytest.approx(expected, rel=0.03)


def records(**volumes: float) -> list[Mapping[str, Any]]:
    return [
        {**claims.WORK, "variant": variant, "quantity": "across_groups", "value": value}
        for variant, value in volumes.items()
    ]


def promised() -> dict[str, float]:
    work = NAMED["tiny_adamw"].with_(dtype="bf16")
    return {name: laws.across(work, DP4, **variant) for name, variant in zero_plus_plus.CARD.variants.items()}


def test_the_claim_on_traffic_is_reproduced_by_what_the_laws_promise() -> None:
    measurement = claims.paper_traffic(records(**promised()))
    assert measurement.detail["status"] == "reproduced"
    assert measurement.value == pytest.approx(0.75 + 4 / BLOCK, rel=0.002)


def test_the_claim_on_traffic_is_contradicted_where_the_backward_pass_gathers_between_groups() -> None:
    volumes = promised()
    assert claims.paper_traffic(records(**{**volumes, "zeropp": 2 * volumes["zeropp"]})).detail["status"] == (
        "contradicted"
    )


def test_without_its_records_the_claim_on_traffic_is_out_of_reach() -> None:
    volumes = promised()
    del volumes["qgz"]
    assert claims.paper_traffic(records(**volumes)).detail["status"] == "out of reach here"
