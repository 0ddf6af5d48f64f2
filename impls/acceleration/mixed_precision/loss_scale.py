"""The loss scale S of float16 training, a state machine (Micikevicius et al. 2018, §3.2, dynamic loss scaling).

A step's loss is multiplied by S before the backward pass, so that small gradients do not underflow in float16, and the
gradients are divided by the same S before they are clipped and applied. S grows until a scaled gradient overflows:

    state       S            loss scale
                good         steps without overflow since S last changed or a step was skipped
                left         overflows before S is halved; H, the hysteresis, at first

    scaled gradients   state         S               good      left      step
    not all finite     left > 1      S               0         left − 1  skipped
    not all finite     left ≤ 1      max(S/2, 1)     0         0         skipped
    finite             good + 1 < n  S               good + 1  left      S divided out, clipped, applied
    finite             good + 1 = n  2S              0         H         S divided out, clipped, applied

    n  growth interval; 0: S is static, and only the step is skipped

A skipped step changes neither weights nor moments, nor AdamW's counter, nor a schedule of learning rates. All that the
step does, its norm too, uses the S that its loss was multiplied with, and only then comes the transition. One rank's
overflow must skip the step of all ranks.
"""

from dataclasses import dataclass, field

GROWTH, BACKOFF, LEAST = 2.0, 0.5, 1.0


@dataclass
class LossScale:
    scale: float  # S
    interval: int = 0  # n
    hysteresis: int = 1  # H
    good: int = 0
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.hysteresis

    def update(self, overflow: bool) -> None:
        """The transition after a step."""
        if not self.interval:
            return
        if overflow:
            self.good, self.left = 0, max(self.left - 1, 0)
            if not self.left:
                self.scale = max(self.scale * BACKOFF, LEAST)
        else:
            self.good += 1
            if self.good == self.interval:
                self.scale, self.good, self.left = self.scale * GROWTH, 0, self.hysteresis
