"""The cut of L layers into segments, as plain numbers (Chen et al. 2016, §4.3 and §4.4)."""

from math import isqrt


def length(layers: int, each: int | str) -> int:
    """Layers in a segment: ``each``, or the k for which k ≥ √L, the least memory at L/k inputs and k layers."""
    return isqrt(layers - 1) + 1 if each == "sqrt" else int(each)


def segments(layers: int, each: int | str) -> list[range]:
    """Consecutive layers, ``each`` of them in a segment, in the last one the rest. ``each`` 0: no segment."""
    k = length(layers, each)
    return [range(start, min(start + k, layers)) for start in range(0, layers, k)] if k else []


def halves(layers: range) -> list[range]:
    """Two halves, the first of them larger by one layer if their number is odd; of one layer nothing."""
    middle = layers.start + (len(layers) + 1) // 2
    return [range(layers.start, middle), range(middle, layers.stop)] if len(layers) > 1 else []


def replays(layers: range) -> int:
    """Forward passes of single layers that the backward pass repeats, if both halves of a segment are segments again:
    L log₂ L for powers of two (ibid., §4.4)."""
    return sum(len(half) + replays(half) for half in halves(layers))
