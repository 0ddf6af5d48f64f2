"""The recipes of this topic: the precision of each kind of number, and the loss scale. Their variants' arguments."""

from dataclasses import dataclass

from harness.spec import Unsupported, Workload
from impls.acceleration.mixed_precision.loss_scale import LossScale


@dataclass(frozen=True)
class Recipe:
    """``precision``: of the forward and backward pass. ``masters``: float32 copies of the weights are what is updated.
    ``wide``: micro-batches are accumulated, and gradients summed over ranks, in float32; otherwise in ``precision``.
    ``autocast``: the weights are float32, and products alone take copies in ``precision``. ``initial``, ``interval``
    and ``hysteresis`` are the loss scale's; an initial scale of 1 is none."""

    precision: str
    masters: bool = True
    wide: bool = True
    autocast: bool = False
    initial: float = 1.0
    interval: int = 0
    hysteresis: int = 1

    @property
    def scaled(self) -> bool:
        return self.initial != 1

    def loss_scale(self) -> LossScale:
        return LossScale(self.initial, self.interval, self.hysteresis)

    def check(self, workload: Workload) -> None:
        """The variant is one of a certain precision."""
        if workload.dtype != self.precision:
            raise Unsupported(f"this variant is one of {self.precision}, not of {workload.dtype}")
