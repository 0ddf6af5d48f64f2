"""How a layer routes: what a variant's arguments mean."""

from dataclasses import dataclass
from math import ceil

SPEED = 2.0**-10  # of the bias, γ; DeepSeek-V3 has 0.001 (section 4.2)


@dataclass(frozen=True)
class Rule:
    """``capacity``: the factor of each expert's capacity, 0 where nothing is dropped. ``groups``: runs of whole
    sequences of the batch, each with a capacity and an auxiliary loss of its own, so that neither depends on how many
    ranks there are. ``drop``: whose turn it is when an expert is full, by ``position`` (first choices of all tokens,
    then second ones) or by ``priority`` (the largest gates first). ``auxiliary``, ``z``: weights of the two losses.
    ``bias``: sigmoid scores, and a bias that takes part in the choice alone.
    """

    experts: int
    k: int
    capacity: float = 0.0
    groups: int = 1
    drop: str = "position"
    auxiliary: float = 0.0
    z: float = 0.0
    bias: bool = False

    def slots(self, tokens: int) -> int:
        """C, the tokens that an expert takes of a group of so many: ⌈k S / E · factor⌉."""
        return ceil(self.k * tokens / self.experts * self.capacity)
