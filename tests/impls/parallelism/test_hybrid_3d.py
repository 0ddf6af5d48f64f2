"""Any mesh computes the same as the dense model, sends what the axes promise, and rejects impossible meshes."""

from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, MoeConfig, Topology, Unsupported, Workload
from impls.common.shards import shard
from impls.parallelism.hybrid_3d import CARD  # noqa: F401
from impls.parallelism.hybrid_3d.checkpoint import Reader, write
from impls.parallelism.hybrid_3d.laws import held, states
from impls.parallelism.hybrid_3d.resharding import other
from tests.impls.layouts import wrong

# Ranks along dp, tp, pp and cp, at most four.
MESHES = tuple(m for m in product((1, 2, 3, 4), repeat=4) if 2 <= prod(m) <= 4)


@st.composite
def layouts(draw: st.DrawFn) -> Case:
    """Ranks along four axes; heads, widths and lengths that they divide; everything else as odd as possible."""
    dp, tp, pp, cp = draw(st.sampled_from(MESHES))
    groups, queries = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    variant = draw(st.sampled_from(["mesh", "mesh_zero1", "mesh_sp"] if tp > 1 else ["mesh", "mesh_zero1"]))
    micro_batches = draw(st.integers(1, 3))
    work = Workload(
        "drawn",
        ModelConfig(
            vocab_size=draw(st.integers(20, 40)),
            hidden_size=draw(st.sampled_from([10, 13])),
            intermediate_size=tp * draw(st.integers(3, 8)),
            num_hidden_layers=pp * draw(st.integers(1, 2)),
            num_attention_heads=tp * groups * queries,
            num_key_value_heads=tp * groups,
            head_dim=draw(st.sampled_from([2, 6])),
            tie_word_embeddings=draw(st.booleans()),
        ),
        batch_size=dp * micro_batches * draw(st.integers(1, 2)),
        micro_batches=micro_batches,
        sequence_length=cp * draw(st.integers(1 + (cp == 1), 8 // cp)),
        min_length=draw(st.sampled_from([0, 2])),
        optimizer=draw(st.sampled_from(["sgd", "adamw"])),
        eps=1e-3,
        max_grad_norm=draw(st.sampled_from([0.0, 0.3])),
        dtype=draw(st.sampled_from(["fp64", "fp32"])),  # bfloat16's noise hides errors of gains of two elements
    )
    return Case("hybrid_3d", variant, "reference", Topology(dp, tp, pp, cp), work)


@st.composite
def layouts_with_experts(draw: st.DrawFn) -> Case:
    """The same layouts with experts on any of the data-parallel ranks."""
    case = draw(layouts())
    dp, tp = case.topology.dp, case.topology.tp
    ep = draw(st.sampled_from([ep for ep in (1, 2, 3, 4) if dp % ep == 0]))
    experts = ep * draw(st.integers(1, 3))
    model = MoeConfig(
        **vars(case.workload.model),
        num_experts=experts,
        num_experts_per_tok=draw(st.integers(1, min(3, experts))),
        moe_intermediate_size=tp * draw(st.integers(1, 5)),
        router_aux_loss_coef=draw(st.sampled_from([0.0, 0.3])),
        router_z_loss_coef=draw(st.sampled_from([0.0, 0.1])),
        **{scope: True for scope in (draw(st.sampled_from(["", "seq_aux", "global_aux"])),) if scope},
    )
    work = case.workload.with_(name="drawn_experts", model=model)
    if model.global_aux:
        work = work.with_(micro_batches=1)
    return replace(case, topology=replace(case.topology, ep=ep), workload=work)


EIGHT = Workload("eight", ModelConfig(33, 12, 20, 2, 4, 2, 6, tie_word_embeddings=True), 4, 2, 7, 2, max_grad_norm=0.3)

DEEP = EIGHT.with_(name="deep", model=replace(EIGHT.model, num_hidden_layers=4), optimizer="adamw", eps=1e-3)

ODD = EIGHT.with_(name="odd", optimizer="adamw", eps=1e-3, dtype="bf16")


@pytest.mark.slow
@settings(max_examples=6)
@given(case=layouts())
@example(case=Case("hybrid_3d", "mesh_sp", "reference", Topology(dp=2, tp=2, pp=2), EIGHT))
@example(case=Case("hybrid_3d", "mesh_zero1", "reference", Topology(dp=2, tp=2, pp=2), EIGHT))
@example(case=Case("hybrid_3d", "mesh_sp", "reference", Topology(tp=2, pp=2, cp=2), EIGHT.with_(sequence_length=6)))
@example(case=Case("hybrid_3d", "mesh_zero_bubble", "reference", Topology(dp=2, pp=2), DEEP))
@example(case=Case("hybrid_3d", "mesh_zero_bubble", "reference", Topology(pp=2, cp=2), DEEP.with_(sequence_length=6)))
@example(case=Case("hybrid_3d", "resharding", "reference", Topology(tp=2, pp=2), ODD))
@example(case=Case("hybrid_3d", "resharding", "reference", Topology(dp=2, tp=2), ODD))
@example(case=Case("hybrid_3d", "resharding_dp", "reference", Topology(dp=2, pp=2), ODD.with_(batch_size=8)))
def test_any_mesh_computes_what_the_dense_model_does(lab: Lab, case: Case) -> None:
    assert wrong(lab, case) == []


EXPERTS = MoeConfig(**vars(EIGHT.model), num_experts=4, num_experts_per_tok=2, moe_intermediate_size=10)


ROUTED = EIGHT.with_(name="routed", model=EXPERTS, optimizer="adamw", eps=1e-3)
BALANCED = replace(EXPERTS, router_aux_loss_coef=0.3, router_z_loss_coef=0.1)
LOSSES = ROUTED.with_(name="losses", model=BALANCED)
GLOBAL = ROUTED.with_(name="global", model=replace(BALANCED, global_aux=True), micro_batches=1, sequence_length=8)
SEQUENCES = ROUTED.with_(name="sequences", model=replace(BALANCED, seq_aux=True))


@pytest.mark.slow
@settings(max_examples=6)
@given(case=layouts_with_experts())
@example(case=Case("hybrid_3d", "mesh", "reference", Topology(2, 2, 2, 1, 2), EIGHT.with_(name="eight", model=EXPERTS)))
@example(case=Case("hybrid_3d", "mesh", "reference", Topology(4, 1, 1, 1, 2), EIGHT.with_(batch_size=8, model=EXPERTS)))
@example(case=Case("hybrid_3d", "mesh_zero1", "reference", Topology(2, 2, 1, 2, 2), ROUTED.with_(sequence_length=6)))
@example(case=Case("hybrid_3d", "mesh_zero1", "reference", Topology(4, 1, 2, 1, 2), ROUTED.with_(batch_size=8)))
@example(case=Case("hybrid_3d", "mesh_sp", "reference", Topology(2, 2, 2, 1, 2), ROUTED))
@example(case=Case("hybrid_3d", "resharding", "reference", Topology(2, 2, 1, 1, 2), ROUTED))
@example(case=Case("hybrid_3d", "resharding", "reference", Topology(1, 2, 2), ROUTED))
@example(case=Case("hybrid_3d", "resharding_dp", "reference", Topology(2, 1, 2, 1, 2), ROUTED.with_(batch_size=8)))
@example(case=Case("hybrid_3d", "mesh_sp", "reference", Topology(2, 2, 1, 1, 2), LOSSES))
@example(case=Case("hybrid_3d", "mesh_sp", "reference", Topology(1, 2, 1, 2), LOSSES.with_(sequence_length=6)))
@example(case=Case("hybrid_3d", "mesh", "reference", Topology(1, 2, 2), LOSSES))
@example(case=Case("hybrid_3d", "mesh_zero1", "reference", Topology(2, 1, 1, 1, 2), SEQUENCES))
@example(case=Case("hybrid_3d", "mesh_sp", "reference", Topology(2, 2, 1, 1, 2), GLOBAL))
@example(case=Case("hybrid_3d", "mesh", "reference", Topology(2, 1, 1, 2), GLOBAL))
@example(case=Case("hybrid_3d", "mesh_sp", "reference", Topology(1, 2, 2, 2), SEQUENCES.with_(sequence_length=6)))
def test_any_mesh_with_experts_computes_what_the_dense_model_does(lab: Lab, case: Case) -> None:
    assert wrong(lab, case) == []


@pytest.mark.parametrize(
    ("variant", "topology"), [("mesh_sp", Topology(2, 2, 1, 1, 2)), ("mesh_zero1", Topology(2, 1, 1, 1, 2))], ids=str
)
def test_megatrons_experts_are_clipped_by_the_norm_of_all_their_parts(
    lab: Lab, variant: str, topology: Topology
) -> None:
    model = MoeConfig(**{**vars(EXPERTS), "vocab_size": 32})
    work = ROUTED.with_(name="even", model=model, sequence_length=8, max_grad_norm=0.05)
    assert wrong(lab, Case("hybrid_3d", variant, "megatron", topology, work)) == []


def test_megatrons_routers_weigh_the_tokens_that_have_a_label(lab: Lab) -> None:
    model = MoeConfig(**{**vars(BALANCED), "vocab_size": 32})
    work = LOSSES.with_(name="padded", model=model, sequence_length=8)
    assert wrong(lab, Case("hybrid_3d", "mesh", "megatron", Topology(2, 1, 1, 1, 2), work)) == []


@pytest.mark.parametrize(
    ("variant", "topology", "work"),
    [
        ("mesh", Topology(cp=2), LOSSES.with_(min_length=0)),
        ("mesh_sp", Topology(tp=2), LOSSES.with_(min_length=0)),
        ("mesh", Topology(pp=2), LOSSES.with_(name="masked", micro_batches=1)),
        ("mesh_sp", Topology(tp=2), GLOBAL.with_(min_length=0)),
    ],
    ids=str,
)
def test_megatrons_default_weights_of_routers_losses_are_right(
    lab: Lab, variant: str, topology: Topology, work: Workload
) -> None:
    model = replace(work.model, vocab_size=32)
    even = work.with_(name=f"even_{work.name}", model=model, sequence_length=8, max_grad_norm=0.0)
    assert wrong(lab, Case("hybrid_3d", variant, "megatron_means", topology, even)) == []


@pytest.mark.parametrize(
    ("topology", "work", "reason"),
    [
        (Topology(2, 1, 1, 1, 2), ROUTED, "without losses of routers the engine megatron has these weights, too"),
        (Topology(2, 1, 1, 1, 2), LOSSES, "micro-batches with unequal numbers of labels"),
        (
            Topology(cp=2),
            LOSSES.with_(name="odd", sequence_length=6),
            "Megatron-Core cuts a sequence into 2·cp equal parts",
        ),
    ],
    ids=str,
)
def test_what_megatrons_default_weights_cannot_be_judged_on_is_skipped(
    lab: Lab, topology: Topology, work: Workload, reason: str
) -> None:
    (found,) = lab.measure("parity", Case("hybrid_3d", "mesh", "megatron_means", topology, work))
    assert found.verdict == "skipped"
    assert reason in found.reason


def test_experts_are_divided_and_their_router_is_not() -> None:
    work, name = EIGHT.with_(model=EXPERTS), "model.layers.0.mlp."
    (mine,) = held(work, Topology(dp=2, tp=2, ep=2))
    assert mine[f"{name}experts.gate_up_proj"] == 4 * 20 * 12 / 4
    assert mine[f"{name}gate.weight"] == 4 * 12


@pytest.mark.parametrize(
    ("variant", "topology", "model", "reason"),
    [
        ("mesh", Topology(dp=2, ep=2), EIGHT.model, "ep 2 without experts: the model is dense"),
        ("resharding_dp", Topology(dp=2, ep=2), EXPERTS, "dp2ep2 unpiped is dp2ep2 again"),
        ("mesh", Topology(dp=3, ep=3), EXPERTS, "ep 3 does not divide 4 experts"),
    ],
    ids=str,
)
def test_experts_that_cannot_be_meshed_are_skipped_with_the_reason(
    lab: Lab, variant: str, topology: Topology, model: ModelConfig, reason: str
) -> None:
    work = EIGHT.with_(name="refused", batch_size=12, model=model)
    (found,) = lab.measure("parity", Case("hybrid_3d", variant, "reference", topology, work))
    assert found.verdict == "skipped"
    assert reason in found.reason


def test_ranks_of_a_stage_hold_their_parts_and_all_ends_of_a_tied_embedding() -> None:
    work = Workload(model=ModelConfig(30, 12, 20, 3, 2, 2, 6, tie_word_embeddings=True))
    first, last = held(work, Topology(tp=2, pp=2))
    assert first["model.embed_tokens.weight"] == last["model.embed_tokens.weight"] == 30 * 12 / 2
    assert first["model.layers.1.mlp.up_proj.weight"] == 20 * 12 / 2
    assert first["model.layers.1.input_layernorm.weight"] == 12
    assert "model.layers.1.mlp.up_proj.weight" not in last


def test_a_checkpoint_is_read_in_any_number_of_parts(tmp_path: Path) -> None:
    whole = {"lm_head.weight": torch.randn(7, 2), "l.o_proj.weight": torch.randn(2, 6), "norm.weight": torch.randn(3)}
    for part in range(2):
        mine = {name: shard(name, tensor, part, 2) for name, tensor in whole.items()}
        write(tmp_path, f"part-0-{part}", {"master": mine}, steps=5)
    for t in (1, 2, 3):
        for rank in range(t):
            reader = Reader(tmp_path, rank, t)
            assert reader.steps == 5
            for name, tensor in whole.items():
                assert torch.equal(reader.read("master", name), shard(name, tensor, rank, t))
            with pytest.raises(ValueError, match="the checkpoint has no exp_avg"):
                reader.read("exp_avg", "norm.weight")
            reader.close()


def test_a_folder_without_a_checkpoint_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        Reader(tmp_path, 0, 1)


@pytest.mark.parametrize(
    ("how", "moves"),
    [
        ("turned", {"dp2tp2": "tp2pp2", "tp2pp2": "dp2pp2", "dp2pp2": "dp2tp2"}),
        ("unpiped", {"tp2pp2": "dp2tp2", "dp2pp2": "dp4", "dp2tp2pp2": "dp4tp2"}),
        ("turned", {"dp2ep2": "tp2", "dp2tp2ep2": "tp2pp2", "dp2pp2ep2": "dp2tp2ep2"}),
        ("unpiped", {"dp2pp2ep2": "dp4ep2"}),
    ],
)
def test_a_run_goes_on_on_another_mesh_of_as_many_ranks(how: str, moves: dict[str, str]) -> None:
    assert {mesh: str(other(Topology.parse(mesh), how)) for mesh in moves} == moves
    with pytest.raises(Unsupported, match=f"dp1 {how} is dp1 again"):
        other(Topology(), how)


def test_work_that_does_not_fit_the_second_mesh_is_skipped_with_the_reason(lab: Lab) -> None:
    (found,) = lab.measure("parity", Case("hybrid_3d", "resharding_dp", "reference", Topology(dp=2, pp=2), ODD))
    assert found.verdict == "skipped"
    assert "on dp4, " in found.reason


def test_zero_divides_the_states_of_the_optimizer_alone() -> None:
    work, mesh = Workload(optimizer="adamw", dtype="bf16"), Topology(dp=2, tp=2)
    whole, divided = states(work, mesh), states(work, mesh, partition=True)
    assert whole is not None
    assert divided == pytest.approx(whole * (4 + 12 / 2) / 16)


@pytest.mark.parametrize(
    ("variant", "topology", "reason"),
    [
        ("mesh_sp", Topology(dp=2, pp=2), "no sequence parallelism without tensor parallelism"),
        ("mesh_zero_bubble", Topology(tp=2, pp=2), "backward passes of tensor-parallel products are not split here"),
    ],
    ids=str,
)
def test_an_impossible_mesh_is_skipped_with_the_reason(lab: Lab, variant: str, topology: Topology, reason: str) -> None:
    (found,) = lab.measure("parity", Case("hybrid_3d", variant, "reference", topology, DEEP))
    assert found.verdict == "skipped"
    assert reason in found.reason


def test_pytorchs_pipelines_are_right_with_replicas_in_ddp(lab: Lab) -> None:
    even = DEEP.with_(name="even", sequence_length=8)
    assert wrong(lab, Case("hybrid_3d", "mesh", "torch", Topology(dp=2, pp=2), even)) == []
