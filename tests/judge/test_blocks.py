"""The number of rounds that a timed block needs, and the verdict of a block with too few."""

from dataclasses import replace

from harness.meter.flops import step_flops
from harness.run.blocks import (
    BRIEF,
    FEWEST,
    LIMIT,
    PATIENCE,
    ROUNDS,
    TURN,
    Block,
    _enough,
    _turn,
    block_key,
    case_flops,
    judge_block,
)
from harness.spec import Card, Case, Engine, Functions, Topology, Trainers, Workload
from harness.spec.named import NAMED
from harness.spec.run import Ceilings

CASE = Case("topic", "variant", "engine", Topology(), Workload())
CARD = Card("topic", "", (), {"variant": {"times": 3}}, {"engine": Engine("m:build")}, ("dp1",))


def counted(workload: Workload, times: int) -> float:
    """FLOPs of a step."""
    return 1e9 * times


def block(rounds: int, noise: float = 0.0) -> Block:
    times = [[1.0 + noise * (index % 3), 1.0] for index in range(rounds)]
    return Block(rounds={CASE.id: times}, cases=(CASE,), spoilt=7, trouble="a cat")


def test_a_quiet_block_ends_as_soon_as_it_can_be_judged_and_a_noisy_one_with_rounds_and_patience() -> None:
    assert not _enough(block(FEWEST - 1), PATIENCE + 1)
    assert _enough(block(FEWEST), 1.0)
    assert not _enough(block(ROUNDS - 1, noise=0.5), PATIENCE + 1)
    assert not _enough(block(ROUNDS, noise=0.5), 1.0)
    assert _enough(block(ROUNDS, noise=0.5), PATIENCE + 1)


def test_a_block_of_many_engines_goes_on_until_it_can_be_judged() -> None:
    assert not _enough(block(FEWEST, noise=0.5), LIMIT - 1)
    assert not _enough(block(FEWEST - 1, noise=0.5), LIMIT + 1)
    assert _enough(block(FEWEST, noise=0.5), LIMIT + 1)


def test_a_block_whose_rounds_are_spoilt_ends_all_the_same() -> None:
    assert _enough(block(1), 2 * LIMIT + 1)


def test_where_every_step_is_long_a_turn_is_short() -> None:
    long, brief = block(1), block(1)
    brief.rounds["other"] = [[BRIEF / 2]]
    assert _turn(long, "cpu")["steps"] < _turn(brief, "cpu")["steps"] == TURN["cpu"]["steps"]
    assert _turn(Block(), "cpu") == TURN["cpu"]
    assert _turn(long, "cuda") == TURN["cuda"]


def test_too_few_rounds_are_no_figure() -> None:
    (measurement,) = judge_block(block(FEWEST - 1), CASE, CARD)
    assert measurement.verdict == "invalid"
    assert f"{FEWEST} are needed; 7 more" in measurement.reason
    assert "a cat" in measurement.reason


def test_a_function_s_share_of_the_ceiling_is_of_its_own_flops() -> None:
    mine = replace(CARD, contract=Functions("m", flops=f"{__name__}:counted"))
    timed = block(FEWEST)
    timed.ceilings = [Ceilings(4e9, 0.0), Ceilings(2e9, 0.0)]
    (measurement,) = judge_block(timed, CASE, mine)
    assert (measurement.detail["tflops"], measurement.detail["mfu"]) == (3e-3, 0.5)
    (silent,) = judge_block(timed, CASE, replace(mine, contract=Functions("m")))
    assert (silent.detail["tflops"], silent.detail["mfu"]) == (None, None)


def test_flops_that_a_trainer_s_topic_adds_count() -> None:
    assert case_flops(CASE, CARD) == step_flops(CASE.workload)
    more = replace(CARD, contract=Trainers(flops=f"{__name__}:counted"))
    assert case_flops(CASE, more) == step_flops(CASE.workload) + counted(CASE.workload, 3)


def test_variants_are_timed_together_unless_the_model_is_large() -> None:
    one, other = (Case("zero", f"zero{stage}", "torch", Topology(dp=2), NAMED["tiny"]) for stage in (1, 2))
    assert block_key(one) == block_key(other)
    one, other = (Case("zero", f"zero{stage}", "torch", Topology(dp=2), NAMED["medium"]) for stage in (1, 2))
    assert block_key(one) != block_key(other)
