"""The contracts of engine adapters. Tensors are torch's; torch itself is not imported here."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from harness.spec.topology import Topology
    from harness.spec.workload import Workload


class Unsupported(Exception):
    """An engine cannot do this work; the message gives the reason. The case is skipped with it, never failed."""


class Batch(NamedTuple):
    """The *global* batch of one step, on the CPU: ``inputs`` and ``labels`` are [batch_size, sequence_length]."""

    inputs: "Tensor"
    labels: "Tensor"


class Span(NamedTuple):
    """The start and end of an action of a step on this rank, in seconds of its :class:`Spans`' clock.

    ``kind``: F is forward, B is backward (only of inputs if there is W), and W computes weights' gradients; ``stage``
    counts along the model, ``micro`` the micro-batches. Communication during computation has C, from issue to
    completion, and X, while the rank issues it or waits for it; F, B and W are then the times of actual computation.
    """

    kind: str
    stage: int
    micro: int
    start: float
    end: float


class Spans(list[Span]):
    """A step's spans by a clock. Where ranks share cores it is the computing thread's own, since wall time depends on
    the scheduler."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock


@runtime_checkable
class Trainer(Protocol):
    """A model in training, one instance a rank. All ranks call each method together.

    Optional methods, each used if it exists:

    ``padding() -> int``: the number of elements that the engine adds to the parameters for alignment.
    ``record(spans: Spans | None)``, for an engine with a schedule: from now on backward() appends each of its actions
    on this rank to the list, device-synchronised; None stops this.
    ``observe() -> Mapping[str, float]``, called after update(): values of that step, such as its loss scale, whether it
    was skipped, its gradient norm or its reward. They are compared with the dense model's, whole numbers exactly.
    ``frozen() -> Mapping[str, Tensor]``: the tensors of which no step may change a bit.
    ``merged() -> Mapping[str, Tensor]`` and ``unmerge()``, where frozen() is a base that the trained parameters adapt:
    the first folds them in and returns the base's tensors, the second takes them out again.

    The report shows three optional text attributes: ``fallback`` describes how the engine departs from the request;
    ``unmetered`` says why its collectives cannot be counted (they do not go through torch.distributed);
    ``configuration`` lists the engine's settings, as its users write them.
    """

    def backward(self, batch: Batch) -> "Tensor":
        """Forward and backward over this rank's share of the global batch, micro-batches included.

        Returns the mean loss over that share (a detached scalar); its mean over ranks is the global batch's mean.
        """

    def update(self) -> None:
        """Clip, step the optimizer, release the gradients."""

    def gradients(self) -> "Mapping[str, Tensor]":
        """Between backward and update: the global batch's mean gradient, unsharded, by canonical name, on the CPU."""

    def parameters(self) -> "Mapping[str, Tensor]":
        """The weights of the optimizer (its fp32 masters, if any), unsharded, by canonical name, on the CPU."""


class Function(Protocol):
    """A computation without a training loop: full inputs in, full outputs out.

    Inputs and outputs are tensors, numbers, texts, and lists of these. Inputs that require a gradient are
    differentiated; there may be none.

    A function distributed over ranks takes and returns only tensors. It is called with this rank's parts, returns this
    rank's parts, and has two more methods. All ranks call each of the three together; only the call itself is measured
    and timed.

    ``split(tensors)``: this rank's part of whole inputs, and of the cotangents of whole outputs, by name.
    ``gather(parts)``: whole outputs, and the inputs' whole gradients, by name; the first rank's answer counts.
    """

    def __call__(self, inputs: "Mapping[str, Any]") -> "Mapping[str, Any]": ...


class Problem(Protocol):
    """A topic's ``problem.py``, if its engines are Functions, has these module-level functions."""

    def draw(self, workload: "Workload", **variant: object) -> "Mapping[str, Any]":
        """Inputs from the workload's seed, on the CPU; numbers in float64. Those that require a gradient are
        differentiated."""

    def plain(self, inputs: "Mapping[str, Any]", **variant: object) -> "Mapping[str, Any]":
        """The textbook formula in plain PyTorch, in the inputs' own dtype; in float64 it is the oracle."""


@dataclass(frozen=True)
class Curves:
    """The learning curve of a run. ``samples`` [n], ascending: the samples taken when each of ``scores`` [n] was
    measured; ``seconds``: the time for all of them; ``losses``: of every step, if an engine's are to be compared with
    the reference's, step by step."""

    samples: Sequence[int]
    scores: Sequence[float]
    seconds: float
    losses: Sequence[float] = ()

    def __post_init__(self) -> None:
        if not self.samples or len(self.samples) != len(self.scores):
            raise ValueError(f"{len(self.samples)} samples for {len(self.scores)} scores")


class Flow(Protocol):
    """A whole training run, judged by its learning curve: an engine's ``build`` is this function itself.

    All ranks call it together; the first rank's answer counts. It takes ``budget`` samples, and two runs with one
    ``seed`` draw the same ones.
    """

    def __call__(
        self, workload: "Workload", topology: "Topology", seed: int, budget: int, **variant: object
    ) -> Curves: ...
