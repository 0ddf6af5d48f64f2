"""The two contracts that an engine's adapter fulfils. Tensors are torch's; torch itself is not imported here."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from harness.spec.workload import Workload


class Unsupported(Exception):
    """An engine cannot do what is asked; the message says why. The case is skipped with it, never failed."""


class Batch(NamedTuple):
    """The *global* batch of one step, on the CPU: ``inputs`` and ``labels`` are [batch_size, sequence_length]."""

    inputs: "Tensor"
    labels: "Tensor"


class Span(NamedTuple):
    """When an action of a step began and ended on this rank, in seconds of its :class:`Spans`' clock.

    ``kind``: F forward, B backward (of inputs alone where there is W), W weights' gradients; ``stage`` counts along the
    model, ``micro`` the micro-batches. Of communication that goes on while a rank computes: C from issue to completion,
    X while the rank issues it or waits for it; F, B and W are then the times in which it does compute.
    """

    kind: str
    stage: int
    micro: int
    start: float
    end: float


class Spans(list[Span]):
    """A step's spans, by a clock: where ranks share cores the computing thread's own, for wall time is the
    scheduler's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock


@runtime_checkable
class Trainer(Protocol):
    """A model in training, one instance a rank. All ranks call each method together.

    Two methods may be added. ``padding() -> int``: the elements of alignment that the engine adds to the parameters.
    ``record(spans: Spans | None)``, of an engine that runs a schedule: from here on backward() appends each of
    its actions on this rank to the list, device-synchronised; with None it no longer does.

    And two texts, attributes that the report shows: ``fallback``, how it does what was asked otherwise than asked;
    ``unmetered``, why its collectives cannot be counted (they do not go through torch.distributed).
    """

    def backward(self, batch: Batch) -> "Tensor":
        """Forward and backward over this rank's share of the global batch, micro-batches included.

        Returns the mean loss over that share (a detached scalar): its mean over ranks is the global batch's.
        """

    def update(self) -> None:
        """Clip, step the optimizer, release the gradients."""

    def gradients(self) -> "Mapping[str, Tensor]":
        """Between backward and update: the global batch's mean gradient, unsharded, canonical names, on the CPU."""

    def parameters(self) -> "Mapping[str, Tensor]":
        """The weights the optimizer holds (its fp32 masters, if any), unsharded, canonical names, on the CPU."""


class Function(Protocol):
    """A computation without a training loop: full inputs in, full outputs out, differentiable.

    One that is spread over ranks has two more methods, is called with this rank's parts and gives this rank's parts;
    all ranks call each of the three together, and only the call is measured and timed.

    ``split(tensors)``: this rank's part of whole inputs, and of the cotangents of whole outputs, by name.
    ``gather(parts)``: the whole of outputs, and of the inputs' gradients, by name; the first rank's answer counts.
    """

    def __call__(self, inputs: "Mapping[str, Tensor]") -> "Mapping[str, Tensor]": ...


class Problem(Protocol):
    """``problem.py`` of a topic whose engines are Functions: these module-level functions."""

    def draw(self, workload: "Workload", **variant: object) -> "Mapping[str, Tensor]":
        """Inputs in float64 on the CPU, from the workload's seed; those that require a gradient are differentiated."""

    def plain(self, inputs: "Mapping[str, Tensor]", **variant: object) -> "Mapping[str, Tensor]":
        """The textbook formula in plain PyTorch, in the inputs' own dtype; in float64 it is the oracle."""
