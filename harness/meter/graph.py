"""Autograd nodes that a step leaves behind: a graph that is never freed grows, though its tensors hold little."""

import gc
from typing import Any

from torch import Tensor


def nodes() -> int:
    """The number of distinct autograd nodes that Python tensors can reach, without garbage in reference cycles."""
    gc.collect()
    seen: set[Any] = set()
    # Not isinstance(): it asks objects for their __class__, and some warn then.
    waiting = [each.grad_fn for each in gc.get_objects() if issubclass(type(each), Tensor)]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(seen)
