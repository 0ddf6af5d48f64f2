"""The contracts that an engine's adapter fulfils. Tensors are torch's; torch itself is not imported here."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from harness.spec.topology import Topology
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

    Methods may be added, each of which is looked at where it is there:

    ``padding() -> int``: the elements of alignment that the engine adds to the parameters.
    ``record(spans: Spans | None)``, of an engine that runs a schedule: from here on backward() appends each of
    its actions on this rank to the list, device-synchronised; with None it no longer does.
    ``observe() -> Mapping[str, float]``, after update(): numbers of that step, say its loss scale, whether it was
    skipped, its gradient norm, its reward. They are compared with the dense model's, whole numbers exactly.
    ``frozen() -> Mapping[str, Tensor]``: what no step may change, bit by bit.
    ``merged() -> Mapping[str, Tensor]`` and ``unmerge()``, where frozen() is a base that the trained parameters adapt:
    the former folds them in and returns the base's tensors, the latter takes them out again.

    And two texts, attributes that the report shows: ``fallback``, how the engine does what was asked otherwise than
    asked; ``unmetered``, why its collectives cannot be counted (they do not go through torch.distributed).
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
    """A computation without a training loop: full inputs in, full outputs out.

    Inputs and outputs are tensors, numbers, texts, and lists of these. Inputs that require a gradient are
    differentiated; there may be none.

    One that is spread over ranks takes and gives tensors alone. It has two more methods, is called with this rank's
    parts and gives this rank's parts; all ranks call each of the three together, and only the call is measured and
    timed.

    ``split(tensors)``: this rank's part of whole inputs, and of the cotangents of whole outputs, by name.
    ``gather(parts)``: the whole of outputs, and of the inputs' gradients, by name; the first rank's answer counts.
    """

    def __call__(self, inputs: "Mapping[str, Any]") -> "Mapping[str, Any]": ...


class Problem(Protocol):
    """``problem.py`` of a topic whose engines are Functions: these module-level functions."""

    def draw(self, workload: "Workload", **variant: object) -> "Mapping[str, Any]":
        """Inputs from the workload's seed, on the CPU; numbers in float64. Those that require a gradient are
        differentiated."""

    def plain(self, inputs: "Mapping[str, Any]", **variant: object) -> "Mapping[str, Any]":
        """The textbook formula in plain PyTorch, in the inputs' own dtype; in float64 it is the oracle."""


@dataclass(frozen=True)
class Curves:
    """How a run learnt. ``samples`` [n], ascending: how many it had taken when each of ``scores`` [n] was measured;
    ``seconds``: how long it took them all."""

    samples: Sequence[int]
    scores: Sequence[float]
    seconds: float

    def __post_init__(self) -> None:
        if not self.samples or len(self.samples) != len(self.scores):
            raise ValueError(f"{len(self.samples)} samples for {len(self.scores)} scores")


class Flow(Protocol):
    """A whole run of training, judged by how it learns: an engine's ``build`` is this function itself.

    All ranks call it together; the first rank's answer counts. It takes ``budget`` samples, and two runs with one
    ``seed`` draw the same ones.
    """

    def __call__(
        self, workload: "Workload", topology: "Topology", seed: int, budget: int, **variant: object
    ) -> Curves: ...
