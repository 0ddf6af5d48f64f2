"""Step times from the interleaved rounds of the case's block: reported with their intervals, never failed."""

from typing import TYPE_CHECKING

from harness.spec import Case, Flows, Measurement, Needs, Occasion, Trainers

if TYPE_CHECKING:
    from harness.run.lab import Lab

PLACE, NEEDS, QUANTITIES = 5, Needs.QUIET, ()


def asked(occasion: Occasion) -> bool:
    """Ranks that share a core measure the scheduler."""
    crowded = occasion.case.topology.world_size > occasion.cores
    return occasion.timed and not crowded and not isinstance(occasion.card.contract, Flows)


def take(lab: "Lab", case: Case) -> list[Measurement]:
    from harness.catalog import load
    from harness.run.blocks import judge_block

    block = lab.runner.block(case)
    # A reference is not compared with an engine that computes something else.
    wrong = {peer.engine for peer in block.cases if peer.variant == case.variant and lab.recorder.wrong(peer)}
    card = lab.runner.card(case)
    more = card.contract.flops if isinstance(card.contract, Trainers) else ""
    added = load(more)(case.workload, **card.variants[case.variant]) if more else 0.0
    return judge_block(block, case, wrong, lab.runner.launcher.device == "cuda", added)
