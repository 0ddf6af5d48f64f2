"""How a rank's states are cut into pieces that are stepped one after the other. No torch: the laws read it too."""

from collections.abc import Sequence
from dataclasses import dataclass

BLOCK = 4096  # bytes: offsets, lengths and addresses of direct reads and writes are multiples of it
PIECES = 32  # of a rank's states
RING = 3  # buffers of a stream of pieces: one is read, one stepped, one written


@dataclass(frozen=True)
class Piece:
    """``length`` elements of a unit's shard from ``start`` on."""

    unit: int
    start: int
    length: int

    @property
    def place(self) -> slice:
        return slice(self.start, self.start + self.length)


def longest(parameters: int, ranks: int) -> int:
    """Elements of a piece: a 32nd of a rank's part of the model, so that a row of any dtype is a number of blocks."""
    return padded(-(-parameters // (PIECES * ranks)))


def padded(size: int) -> int:
    """``size`` rounded up to a number of blocks."""
    return -(-size // BLOCK) * BLOCK


def cut(sizes: Sequence[int], most: int) -> list[Piece]:
    """Shards of these sizes in pieces of at most ``most`` elements, in order; none lies in two units."""
    return [
        Piece(unit, start, min(most, size - start)) for unit, size in enumerate(sizes) for start in range(0, size, most)
    ]
