"""Step times from the interleaved rounds of the case's block: told with their intervals, never failed."""

from typing import TYPE_CHECKING

from harness.spec import Case, Finding, Needs, Occasion

if TYPE_CHECKING:
    from harness.lab import Lab

PLACE, NEEDS = 5, Needs.QUIET


def asked(occasion: Occasion) -> bool:
    """Ranks that share a core time the scheduler."""
    return occasion.timed and occasion.case.topology.world_size <= occasion.cores


def take(lab: "Lab", case: Case) -> list[Finding]:
    from harness.blocks import judge_block

    block = lab.block(case)
    wrong = {peer.engine for peer in block.cases if peer.variant == case.variant and is_wrong(lab, peer)}
    return judge_block(block, case, wrong, marked=lab.launcher.device == "cuda")


def is_wrong(lab: "Lab", case: Case) -> bool:
    """Whether it computes something else: parity failed here, or is known to. No reference is held to it."""
    judged = any(f.measure == "parity" and f.verdict == "fail" for f in lab.judged.get(case.id, []))
    return judged or any(w.measure == "parity" and w.matches(case.id) for w in lab.waivers)
