"""Published figures of ZeRO++ compared with this session's."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.spec import Measurement, assessed, measured

Records = Sequence[Mapping[str, Any]]
WORK = {"engine": "reference", "topology": "dp4", "workload": "tiny_adamw", "dtype": "bf16"}
RANKS, GROUP = 4, 2  # dp4, and the card's groups
WITHIN = 0.05  # tolerance, as a share of the published volume


def paper_traffic(records: Records) -> Measurement:
    """3M → 0.75M, by part: the traffic of each of the three collectives, from the difference that each technique
    makes."""
    arithmetic = (
        "with M bytes of 2-byte weights: 8-bit gathers are M/2, none in the backward pass, 4-bit reductions are "
        "M/4: 0.75M holds without scales; with 4-byte weights it would be 3M → 0.375M"
    )
    figures = {"law": 0.75, "unit": "× M between nodes"}
    names = ("qwz", "hpz", "qgz", "zeropp")
    found = [measured(records, variant=name, quantity="across_groups", **WORK) for name in names]
    if not all(found):
        reason = "this run has no traffic of the reference's four variants in bf16 at dp4"
        return assessed("paper_traffic", "out of reach here", reason, arithmetic, **figures)
    qwz, hpz, qgz, every = (values[0] for values in found)
    plain = hpz / 2  # traffic of a gather or a reduction among all ranks; hpZ leaves two of three
    gather, hop = (qwz - plain) / 2, qgz - 2 * plain
    # A ring crosses a node's border once, whichever rank sends; in the second hop each rank of a node sends its own
    # data. The paper rounds (N−1)/N of a ring and (m−1)/m of the hop to 1.
    nodes = RANKS // GROUP
    whole = plain * RANKS / (RANKS - 1)
    forward, backward = gather / plain, (every - gather - hop) / plain
    gradients = GROUP * hop * nodes / (nodes - 1) / whole
    total = forward + backward + gradients
    reason = (
        f"bytes that leave a group of {GROUP} ranks, in bf16: forward {forward:.3f}M, backward {backward:.3f}M, "
        f"gradients {gradients:.3f}M, together {total:.3f}M; above 0.75M are the scales, 4 bytes per 256 elements"
    )
    status = "reproduced" if abs(total / 0.75 - 1) <= WITHIN else "contradicted"
    return assessed("paper_traffic", status, reason, arithmetic, value=total, **figures)


def paper_throughput(records: Records) -> Measurement:
    """Up to 2.16 × on 384 GPUs."""
    share = (1 - 1 / 2.16) / (1 - 0.75 / 3)
    arithmetic = (
        f"a quarter of the traffic makes a step 2.16 × faster if it spent {share:.0%} of its time on traffic between "
        "nodes and hid none of it; 4 × is the limit: possible"
    )
    reason = "needs 384 GPUs on 24 nodes, and a network that is their bottleneck"
    return assessed(
        "paper_throughput", "out of reach here", reason, arithmetic, law=2.16, unit="× the throughput of ZeRO-3"
    )
