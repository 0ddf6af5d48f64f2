"""The number of rounds that a timed block needs, and the verdict of a block with too few."""

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
    judge_block,
)
from harness.spec import Case, Topology, Workload
from harness.spec.named import NAMED

CASE = Case("topic", "variant", "engine", Topology(), Workload())


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
    (measurement,) = judge_block(block(FEWEST - 1), CASE)
    assert measurement.verdict == "invalid"
    assert f"{FEWEST} are needed; 7 more" in measurement.reason
    assert "a cat" in measurement.reason


def test_flops_that_a_variant_adds_count() -> None:
    plain, more = (judge_block(block(FEWEST), CASE, added=added)[0] for added in (0.0, step_flops(CASE.workload)))
    assert more.detail["tflops"] == 2 * plain.detail["tflops"]


def test_variants_are_timed_together_unless_the_model_is_large() -> None:
    one, other = (Case("zero", f"zero{stage}", "torch", Topology(dp=2), NAMED["tiny"]) for stage in (1, 2))
    assert block_key(one) == block_key(other)
    one, other = (Case("zero", f"zero{stage}", "torch", Topology(dp=2), NAMED["medium"]) for stage in (1, 2))
    assert block_key(one) != block_key(other)
