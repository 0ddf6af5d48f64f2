"""Step times from the interleaved rounds of the case's block, and the reference's against the fastest engine's."""

from functools import partial
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
    from harness.judge.speed import REFERENCE_LIMIT

    # On GPUs engines have kernels of their own: plain PyTorch is told apart from them there, and not held to them.
    limit = REFERENCE_LIMIT if lab.launcher.device == "cpu" else None
    block = lab.block(case, partial(is_wrong, lab), limit)
    peers = [member for member in block.cases if member.variant == case.variant]
    return judge_block(block, case, {peer.engine for peer in peers if is_wrong(lab, peer)}, limit)


def is_wrong(lab: "Lab", case: Case) -> bool:
    """Whether it computes something else: parity failed here, or is known to. It sets no pace."""
    judged = any(f.measure == "parity" and f.verdict == "fail" for f in lab.judged.get(case.id, []))
    return judged or any(w.measure == "parity" and w.matches(case.id) for w in lab.waivers)
