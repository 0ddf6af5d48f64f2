"""When a timed block has enough rounds, and what one with too few is."""

import random
from typing import Any

import pytest

from harness import blocks
from harness.blocks import (
    BRIEF,
    DUEL_FEWEST,
    DUEL_ROUNDS,
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
from harness.launch.outcome import Done, Raised
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
    (finding,) = judge_block(block(FEWEST - 1), CASE)
    assert finding.verdict == "invalid"
    assert f"{FEWEST} are needed; 7 more" in finding.reason
    assert "a cat" in finding.reason


def test_variants_are_timed_together_unless_the_model_is_large() -> None:
    one, other = (Case("zero", f"zero{stage}", "torch", Topology(dp=2), NAMED["tiny"]) for stage in (1, 2))
    assert block_key(one) == block_key(other)
    one, other = (Case("zero", f"zero{stage}", "torch", Topology(dp=2), NAMED["medium"]) for stage in (1, 2))
    assert block_key(one) != block_key(other)


REFERENCE, RIVAL, WRONG = (Case("topic", "variant", name, Topology(), Workload()) for name in ("reference", "a", "b"))


class Steps:
    """A world whose steps take ``seconds``, give or take a tenth, until it has taken ``lasts`` turns."""

    def __init__(self, seconds: float, lasts: int = 1000) -> None:
        self.seconds, self.left, self.chance = seconds, lasts, random.Random(seconds)
        self.turns = 0

    def run(self, job: Any, timeout: float) -> tuple[Any, ...]:
        self.turns += 1
        if self.turns > self.left:
            return (Raised(0, 0.0, "lost"),)
        return (Done(0, [self.seconds * self.chance.uniform(0.9, 1.1) for _ in range(job.arguments["steps"])]),)

    def close(self) -> None:
        self.turns = -1


def dueled(seconds: float, lasts: int = 1000) -> tuple[Block, dict[str, Any]]:
    """A block whose rounds told nothing of a reference, and what came of its worlds; a step of its rival takes 1 s, of
    an engine that is wrong half of that."""
    noisy = [[0.5], [2.0], [1.0], [0.6], [1.7]]
    block = Block(cases=(REFERENCE, RIVAL, WRONG), rounds={REFERENCE.id: noisy, RIVAL.id: noisy[::-1]})
    block.rounds[WRONG.id] = [[0.5]] * len(noisy)
    worlds: dict[str, Any] = {REFERENCE.id: Steps(seconds), RIVAL.id: Steps(1.0, lasts), WRONG.id: Steps(0.5)}
    kept = dict(worlds)
    blocks._decide(block, worlds, {WRONG.id}, 9.0, "cpu", limit=1.15)
    return block, kept


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.blocks.FOREIGN", float("inf"))


@pytest.mark.parametrize(("seconds", "verdict"), [(0.9, "pass"), (1.5, "fail")])
def test_a_duel_with_the_fastest_engine_that_is_right_decides(seconds: float, verdict: str) -> None:
    block, worlds = dueled(seconds)
    ours, theirs = block.duels[REFERENCE.id]
    assert len(ours) == len(theirs) == DUEL_FEWEST, "it ends when it has decided"
    assert worlds[WRONG.id].turns == 0
    (found,) = judge_block(block, REFERENCE, {"b"}, 1.15)
    assert found.verdict == verdict
    assert f"{found.detail['pace']:.2f} × the fastest engine a (" in found.reason
    assert found.detail["pace"] == pytest.approx(seconds, rel=0.1)
    assert f"in {DUEL_FEWEST} rounds of these two" in found.reason


def test_a_duel_that_nobody_wins_ends_all_the_same_and_decides_nothing() -> None:
    block, _ = dueled(1.15)
    assert len(block.duels[REFERENCE.id][0]) == DUEL_ROUNDS
    assert judge_block(block, REFERENCE, {"b"}, 1.15)[0].verdict == "inconclusive"


def test_of_a_duel_in_which_one_is_lost_nothing_is_kept() -> None:
    block, worlds = dueled(1.15, lasts=DUEL_FEWEST + 2)
    assert not block.duels
    assert RIVAL.id in block.problems
    assert worlds[RIVAL.id].turns == -1, "its world is closed"


def test_what_is_decided_or_not_asked_is_fought_over_by_nobody() -> None:
    block = Block(cases=(REFERENCE, RIVAL), rounds={REFERENCE.id: [[1.0]] * ROUNDS, RIVAL.id: [[1.0]] * ROUNDS})
    worlds: dict[str, Any] = {REFERENCE.id: Steps(1.0), RIVAL.id: Steps(1.0)}
    blocks._decide(block, worlds, (), 9.0, "cpu", limit=1.15)
    assert not block.duels
    assert worlds[RIVAL.id].turns == 0
