"""Faults that the suites must catch, run as every case is run; and the honest references, which must pass."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from harness import catalog
from harness.run.lab import Lab
from harness.spec import Case, Engine, Finding, Topology, Workload
from harness.spec.named import load
from tests import labs

CARDS = catalog.topics()
SEEDS = range(1, 21)
FEW = 2  # seeds of other topics, and in float32 of work other than tiny: where CPUs have no bfloat16, a minute each
ALL = ("data_parallel", "zero", "tensor_parallel", "flash_attention", "preference")

OUTPUT, GRADIENT, UPDATE = (frozenset({kind, f"{kind} slope"}) for kind in ("output", "gradient", "update"))
LOSS = frozenset({"loss"})
ORDER = ("output", "gradient", "update", "loss")
TRAINED = UPDATE | LOSS


@dataclass(frozen=True)
class Fault:
    """``fp32`` and ``bf16``: the figures that must fail there, at twice their bound at least; in float32 what comes
    before them in a step must pass. ``where``: what the reason names first; ``changes``: of the workload."""

    topic: str
    variant: str
    topology: str
    fp32: frozenset[str]
    bf16: frozenset[str]
    where: str
    workload: str = "tiny"
    changes: Mapping[str, Any] = field(default_factory=dict)

    def work(self, dtype: str) -> Workload:
        return load(self.workload).with_(dtype=dtype, **self.changes)


FAULTS = {
    "not_averaged": Fault("data_parallel", "ddp", "dp2", GRADIENT | TRAINED, GRADIENT | UPDATE, "step 1, gradient of "),
    "a_rank_left_out": Fault(
        "data_parallel",
        "ddp_naive",
        "dp2",
        GRADIENT | {"update"},
        frozenset({"gradient"}),
        "step 1, gradient of model.layers.0.self_attn.q_norm.weight, in all 2 parts",
    ),
    "tokens_of_its_own_rank": Fault(
        "gradient_accumulation",
        "accumulate_tokens",
        "dp2",
        GRADIENT | TRAINED,
        frozenset({"update"}),
        "step 1, gradient of ",
        "unequal",
        {"batch_size": 4, "micro_batches": 2},  # of few sequences, ranks have more unequal numbers of tokens
    ),
    "larger_rate": Fault("zero", "zero3", "dp2", TRAINED, frozenset({"update slope"}), "update of model."),
    "clipped": Fault("data_parallel", "ddp_no_sync", "dp2", TRAINED, UPDATE, "step 2, loss "),
    "a_shard_off_by_one": Fault(
        "zero", "zero3", "dp2", GRADIENT | TRAINED, GRADIENT, "step 1, gradient of model.layers.1."
    ),
    "no_sum_over_heads": Fault(
        "tensor_parallel",
        next(iter(CARDS["tensor_parallel"].variants)),
        "tp2",
        GRADIENT | UPDATE,
        frozenset({"gradient"}),
        "_norm.weight",
    ),
    "no_softmax_scale": Fault(
        "flash_attention", "fa2_causal", "dp1", OUTPUT | GRADIENT, OUTPUT | GRADIENT, "output of output"
    ),
    "wrong_sign": Fault("preference", "dpo", "dp1", OUTPUT | GRADIENT, OUTPUT | GRADIENT, "output of loss"),
    "no_sum_over_sequence": Fault(
        "sequence_parallel", "sp", "tp2", GRADIENT | TRAINED, frozenset({"gradient"}), "norm.weight", "uneven_tied"
    ),
    "gradients_that_never_cross": Fault(
        "hybrid_shard",
        "mics",
        "dp2",
        GRADIENT | TRAINED,
        GRADIENT | UPDATE,
        "step 1, gradient of ",
        "accumulated",
    ),
    "replicas_counted_on_every_rank": Fault(
        "gradient_clipping", "clip", "tp4", TRAINED, frozenset({"update slope"}), "step 2, loss ", "clipped"
    ),
    "a_write_left_behind": Fault(
        "zero_offload", "nvme_params", "dp2", TRAINED, frozenset({"update"}), "update of lm_head."
    ),
    "no_log_sum_exp": Fault(
        "context_parallel", "ring_zigzag", "cp2", OUTPUT | GRADIENT, OUTPUT | GRADIENT, "output of output"
    ),
    "no_sum_over_replicas": Fault("expert_parallel", "st_moe", "dp2", GRADIENT, GRADIENT, "step 1, gradient of "),
    "a_rotary_key_of_its_own_heads": Fault(
        "latent_attention", "mla", "tp2", GRADIENT, GRADIENT, "step 1, gradient of kv_down"
    ),
    "a_stale_partition": Fault("zero_plus_plus", "hpz", "dp2", TRAINED, frozenset({"update"}), "step 2, loss "),
    "a_tie_that_is_not_summed": Fault(
        "pipeline_parallel",
        "1f1b",
        "pp2",
        GRADIENT | TRAINED,
        frozenset({"gradient"}),
        "step 1, gradient of model.embed_tokens.weight",
        "pipelined_tied",
    ),
    "gains_of_one_part": Fault(
        "hybrid_3d",
        "mesh_zero1",
        "tp2pp2",
        GRADIENT,
        frozenset({"gradient"}),
        "_norm.weight",
        "meshed",
    ),
    "experts_that_count_their_ranks": Fault(
        "hybrid_3d",
        "mesh",
        "dp2ep2",
        GRADIENT | {"update slope"},
        frozenset(),  # not run: rounding sends tokens to other experts
        "step 1, gradient of model.layers.",
        "meshed_experts",
    ),
    "positions_of_the_first_rank": Fault(
        "hybrid_3d", "mesh", "cp2", GRADIENT | TRAINED, GRADIENT, "step 1, gradient of model.layers.", "meshed"
    ),
    "no_stashed_weights": Fault(
        "pipeline_parallel",
        "pipedream",
        "pp2",
        GRADIENT | TRAINED,
        frozenset({"gradient", "update"}),  # no error of scale: what slopes see depends on the CPU's bfloat16
        "step 1, gradient of model.",
        "pipelined",
        {"lr": 0.4},  # weights move so far that it matters which ones a backward pass takes
    ),
    "a_half_that_is_not_summed": Fault(
        "overlap", "domino", "tp2", GRADIENT | TRAINED, GRADIENT | UPDATE, "step 1, gradient of model."
    ),
}


@pytest.fixture(scope="module")
def recorded() -> list[tuple[Case, Finding]]:
    return []


@pytest.fixture(scope="module")
def lab(recorded: list[tuple[Case, Finding]]) -> Iterator[Lab]:
    lab = labs.make(CARDS, lambda case, findings: recorded.extend((case, finding) for finding in findings))
    yield lab
    lab.runner.close()


def planted(lab: Lab, name: str, dtype: str) -> dict[str, Finding]:
    """The findings on a reference with this fault; it is a variant of its own, so that its case has its own id."""
    fault = FAULTS[name]
    card = CARDS[fault.topic]
    engine = Engine(f"{__package__}.faults:{name}")
    broken = replace(card, variants={name: card.variants[fault.variant]}, engines={**card.engines, "faulty": engine})
    lab.runner.cards = {**CARDS, fault.topic: broken}
    found = lab.measure(
        "parity",
        Case(fault.topic, name, "faulty", Topology.parse(fault.topology), fault.work(dtype)),
    )
    return {finding.quantity: finding for finding in found}


def clear(findings: dict[str, Finding]) -> set[str]:
    """The figures that fail at twice their bound, which no honest run comes near to (test_calibration.py)."""
    assert {finding.verdict for finding in findings.values()} <= {"pass", "fail"}, findings
    return {quantity for quantity, found in findings.items() if found.value >= 2 * found.bound}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_fails_in_float32_where_it_is_and_nowhere_else(lab: Lab, name: str) -> None:
    found, must = planted(lab, name, "fp32"), FAULTS[name].fp32
    assert clear(found) >= must
    earliest = min(ORDER.index(quantity.split()[0]) for quantity in must)
    assert all(finding.verdict == "pass" for q, finding in found.items() if ORDER.index(q.split()[0]) < earliest)
    for quantity in must:
        assert "first divergence: " in found[quantity].reason
    first = next(finding for finding in found.values() if finding.verdict == "fail")
    assert FAULTS[name].where in first.detail["first_divergence"]


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.bf16])
def test_a_planted_fault_fails_in_bfloat16_too(lab: Lab, name: str) -> None:
    assert clear(planted(lab, name, "bf16")) >= FAULTS[name].bf16


def test_what_failed_is_recorded_at_once(lab: Lab, recorded: list[tuple[Case, Finding]]) -> None:
    recorded.clear()
    found = planted(lab, "wrong_sign", "fp32")
    assert [finding for _, finding in recorded] == list(found.values())
    assert {case.id for case, _ in recorded} == {"wrong_sign-faulty-dp1-fp32"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_unbroken_references_pass_with_twenty_other_seeds(lab: Lab, dtype: str) -> None:
    lab.runner.cards = CARDS
    run = [fault for fault in FAULTS.values() if dtype == "fp32" or fault.bf16]
    unbroken = {(fault.topic, fault.variant, fault.topology, fault.workload) for fault in run}
    cases = [
        Case(
            topic,
            variant,
            "reference",
            Topology.parse(topology),
            load(name).with_(name=f"{name}_seed{seed}", seed=seed, dtype=dtype),
        )
        for seed in SEEDS
        for topic, variant, topology, name in sorted(unbroken)
        if (name == "tiny" and topic in ALL) or (seed <= FEW and (name == "tiny" or dtype == "fp32"))
    ]
    lab.runner.expect(cases, cases, parity=True)  # two worlds at a time
    wrong = {
        case.id: [found.reason for found in lab.measure("parity", case) if found.verdict != "pass"] for case in cases
    }
    assert {case: reasons for case, reasons in wrong.items() if reasons} == {}
