"""Expert parallelism: its parts one by one, and the layer on work that the suites do not have."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.launch.outcome import Done, Job, describe
from harness.launch.rank import Context
from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, Topology, Workload
from impls.parallelism.expert_parallel import CARD, claims, dispatch, laws, problem, router
from impls.parallelism.expert_parallel.reference import expert_parallel, naive
from impls.parallelism.expert_parallel.router import Rule
from impls.parallelism.expert_parallel.spread import Spread

ALONE: Any = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
WORK = Workload("odd", ModelConfig(hidden_size=13, intermediate_size=7), batch_size=4, sequence_length=5, dtype="fp64")
# Three of six experts with too little capacity, and one of twelve: there most experts have no token, and some ranks no
# row.
ODD = {
    "crowded": {"experts": 6, "k": 3, "capacity": 0.7, "groups": 4, "auxiliary": 0.1, "z": 0.1},
    "crowded_priority": {"experts": 6, "k": 3, "capacity": 0.7, "groups": 4, "drop": "priority", "auxiliary": 0.1},
    "deserted": {"experts": 12, "k": 1, "auxiliary": 0.1, "z": 0.1},
    "biased": {"experts": 12, "k": 1, "bias": True},
}


CARDS = {CARD.name: replace(CARD, variants=ODD)}


@pytest.mark.parametrize("variant", ODD)
@pytest.mark.parametrize("topology", ["dp1", "dp2ep2", "dp4ep2", "dp2tp2ep2"])
def test_the_layer_is_the_dense_formula_in_float64_on_odd_sizes(lab: Lab, variant: str, topology: str) -> None:
    work = WORK if "crowded" in variant else WORK.with_(name="few", sequence_length=1)
    if "tp" in topology:  # divides heads and width
        model = replace(work.model, intermediate_size=10, num_attention_heads=2, num_key_value_heads=2)
        work = work.with_(name=f"{work.name}_cut", model=model)
    measurements = lab.measure("parity", Case(CARD.name, variant, "reference", Topology.parse(topology), work))
    assert [measurement.reason for measurement in measurements if measurement.verdict != "pass"] == []
    assert {measurement.quantity for measurement in measurements} >= {"output", "gradient"}


def test_more_ranks_than_experts_divide_into_are_refused() -> None:
    with pytest.raises(ValueError, match="ep 4 does not divide 6 experts"):
        Spread(Topology(dp=4, ep=4), 6)


@settings(derandomize=True, max_examples=80)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 3),
    groups=st.integers(1, 3),
    size=st.integers(1, 9),
    capacity=st.floats(0.1, 3.0),
    drop=st.sampled_from(["position", "priority"]),
)
def test_whom_a_full_expert_drops_is_what_one_token_after_another_gives(
    seed: int, k: int, groups: int, size: int, capacity: float, drop: str
) -> None:
    rule = Rule(experts=4, k=k, capacity=capacity, groups=groups, drop=drop)
    generator = torch.Generator().manual_seed(seed)
    gates, chosen = torch.rand(groups * size, 4, generator=generator).topk(k)
    kept = router.keep(chosen, gates, rule, groups)
    assert torch.equal(kept, problem.keep(chosen, gates, rule))
    for part, mask in zip(chosen.chunk(groups), kept.chunk(groups), strict=True):
        assert part[mask].bincount(minlength=4).max() <= rule.slots(size)


def test_first_choices_come_before_second_ones() -> None:
    """Each expert has room for one token, and every token's second choice is another's first."""
    chosen, gates = torch.tensor([[1, 0], [0, 2], [2, 1]]), torch.tensor([[0.6, 0.4]] * 3)
    rule = Rule(experts=3, k=2, capacity=0.5)
    assert router.keep(chosen, gates, rule, 1).tolist() == [[True, False]] * 3


def test_equal_shares_and_scores_have_an_auxiliary_loss_of_one() -> None:
    even = torch.full((3, 4), 0.25)
    assert router.balance(even, torch.full((12, 4), 0.25), 3).item() == pytest.approx(1.0)


def test_the_bias_moves_the_choice_and_not_the_gates() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    rule = Rule(experts=3, k=2, bias=True)
    scores, chosen, gates = router.choose(logits, torch.tensor([-1.0, 0.0, 0.5]), rule)
    assert chosen.tolist() == [[2, 1]]
    assert torch.equal(gates, scores[:, [2, 1]] / scores[:, [2, 1]].sum())


@settings(derandomize=True, max_examples=30)
@given(t=st.integers(1, 6), k=st.integers(1, 3), used=st.integers(3, 5), f=st.integers(1, 5), h=st.integers(1, 5))
def test_routed_tokens_are_every_expert_on_every_token(t: int, k: int, used: int, f: int, h: int) -> None:
    """Values and gradients, including experts that no token has chosen: the last ones of five."""
    generator = torch.Generator().manual_seed(t * used)
    chosen = torch.rand(t, used, generator=generator).topk(k).indices

    def leaves() -> list[Tensor]:
        generator.manual_seed(0)
        shapes = ((t, h), (t, k), (5, 2 * f, h), (5, h, f))
        return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]

    ours, theirs = leaves(), leaves()
    way = dispatch.plan(chosen, None, 5, ALONE)
    out, expected = expert_parallel(*ours[:2], way, *ours[2:]), naive(*theirs[:2], chosen, *theirs[2:])
    torch.testing.assert_close(out, expected)
    found, true = (torch.autograd.grad(y.sin().sum(), x) for y, x in ((out, ours), (expected, theirs)))
    torch.testing.assert_close(found, true)


def transposes(context: Context) -> tuple[float, float]:
    """⟨D x, y⟩ and ⟨x, C y⟩ over all ranks. Rank 1 drops some tokens and sends nothing to rank 0."""
    generator = torch.Generator().manual_seed(context.rank)
    experts_of = torch.tensor([[0, 3], [2, 1], [0, 2]]) if context.rank == 0 else torch.tensor([[2, 3], [3, 1]])
    kept = torch.ones_like(experts_of, dtype=torch.bool) if context.rank == 0 else experts_of > 1
    way, slots = dispatch.plan(experts_of, kept, 4, torch.distributed.group.WORLD), experts_of.numel()
    x, y = (
        torch.randn(rows, 3, generator=generator, dtype=torch.float64).requires_grad_()
        for rows in (slots, sum(way.counts))
    )
    there, back = dispatch.dispatch(x, way), dispatch.combine(y, way, slots)
    gradients = [torch.autograd.grad(there, x, y.detach())[0], torch.autograd.grad(back, y, x.detach())[0]]
    torch.testing.assert_close(gradients, [back.detach(), there.detach()])
    pair = torch.stack([(there * y).sum(), (x * back).sum()]).detach()
    torch.distributed.all_reduce(pair)
    return float(pair[0]), float(pair[1])


def test_dispatch_and_combine_are_each_others_transpose_with_uneven_splits(lab: Lab) -> None:
    world = lab.runner.launcher.world(2, "reference", CARD.engines["reference"].build.partition(":")[0])
    try:
        outcomes = world.run(Job(f"{__name__}:transposes", {}), 60.0)
    finally:
        world.close()
    assert all(isinstance(outcome, Done) for outcome in outcomes), describe(outcomes)
    forth, back = outcomes[0].value
    assert forth == pytest.approx(back, rel=1e-12)
    assert forth != 0.0


@pytest.mark.parametrize("variant", CARD.variants)
@pytest.mark.parametrize("seed", range(3))
def test_every_drawn_token_is_beyond_doubt_and_held_by_bfloat16(variant: str, seed: int) -> None:
    """Logits in bfloat16, which some engines use, must also lead to the same experts."""
    arguments = CARD.variants[variant]
    inputs, rule = problem.draw(Workload(seed=seed), **arguments), Rule(**arguments)
    for name in ("x", "router"):
        assert torch.equal(inputs[name], inputs[name].bfloat16().double())
    rough = problem.scores(inputs, rule)[0].bfloat16()
    by = rough.sigmoid() + inputs["bias"].bfloat16() if rule.bias else rough
    assert torch.equal(by.topk(rule.k).indices, problem.choose(inputs, rule)[0])


def test_a_batch_that_groups_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 6 is not a multiple of the variant's 4 groups"):
        problem.draw(Workload(batch_size=6), **CARD.variants["switch"])


def test_the_law_counts_the_rows_that_change_ranks() -> None:
    """If every rank has a copy of the experts (ep 1), no row travels, but sums of gradients do."""
    work, variant = Workload(), CARD.variants["gshard"]
    model, ring = work.model, 2 * (2 - 1) / 2 * 4
    weights = 8 * model.hidden_size + 8 * 3 * model.hidden_size * model.intermediate_size
    assert laws.traffic(work, Topology(dp=2), **variant) == ring * weights
    table = laws.rows(work, Topology(dp=2, ep=2), Rule(**variant), **variant)
    dropped = int(problem.plain(problem.draw(work, **variant), **variant)["dropped"])
    assert sum(map(sum, table)) == 2 * work.tokens - dropped
    assert laws.traffic(work, Topology(), **variant) is None


def test_topk_on_a_cpu_breaks_ties_in_no_order() -> None:
    """The reason why two engines are skipped on a CPU for drops by position. If this fails, they need not be."""
    wanted = (torch.rand(64, 8, generator=torch.Generator().manual_seed(0)) < 0.25).int()
    taken = torch.zeros_like(wanted, dtype=torch.bool).scatter(0, wanted.topk(8, dim=0).indices, True)
    assert not torch.equal(taken & (wanted > 0), (wanted > 0) & (wanted.cumsum(0) <= 8))


def test_claims_say_what_arithmetic_and_the_routers_give() -> None:
    parameters, balance = claims.practice_parameters([]), claims.practice_entropy([])
    assert (parameters.value, parameters.detail["status"]) == (4160.0, "contradicted")
    assert balance.detail["status"] == "reproduced"
    assert balance.detail["most"] >= balance.value > max(balance.detail["auxiliary_loss"][0], balance.detail["bias"][0])


def test_the_entropy_of_equal_loads_is_the_logarithm_of_their_number() -> None:
    assert claims.entropy(torch.tensor([3, 3, 0, 3])) == pytest.approx(torch.tensor(3.0).log().item())
