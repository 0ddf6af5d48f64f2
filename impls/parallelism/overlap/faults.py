"""Overlap with exactly one thing broken."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, TRAINED, UPDATE, Fault
from impls.parallelism.overlap import domino, reference, ring
from impls.parallelism.overlap.wire import Flight, Wire


def a_half_that_is_not_summed(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Backward, the second half's input gradients are each rank's own: what is waited for was never issued."""

    class Alone(Wire):
        def sum(self, x: Tensor) -> Flight:
            return Flight(self, lambda: (x, []))

    backward = domino.Half.backward

    def alone(half: domino.Half, stage: int, scale: Tensor) -> None:
        if half.index:
            half.wire = Alone(half.wire.group)
        backward(half, stage, scale)

    domino.Half.backward = alone
    return reference.build(workload, topology, **variant)


def tiles_that_go_all_the_way_round(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """After the last product a tile goes on, back to its owner, which has it already."""
    travel = ring.travel

    def further(wire: Wire, part: Tensor, kind: str, stage: int) -> Iterator[tuple[int, Tensor]]:
        yield from travel(wire, part, kind, stage)
        wire.hand_on(part).wait()

    ring.travel = further
    return reference.build(workload, topology, **variant)


FAULTS = {
    "a_half_that_is_not_summed": Fault(
        "domino",
        "tp2",
        {"parity": {"fp32": GRADIENT | TRAINED, "bf16": GRADIENT | UPDATE}},
        where="step 1, gradient of model.",
    ),
    "tiles_that_go_all_the_way_round": Fault(
        "async_tp", "tp2", {"traffic": {"fp32": {"bytes"}}, "timeline": {"fp32": {"flights"}}}
    ),
}
