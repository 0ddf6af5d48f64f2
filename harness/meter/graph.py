"""Autograd nodes that a step leaves behind: a graph that is never freed grows, though its tensors hold little."""

import gc

from torch import Tensor


def nodes() -> int:
    """The number of distinct autograd nodes that live Python tensors can reach."""
    seen, waiting = set(), [each.grad_fn for each in gc.get_objects() if isinstance(each, Tensor)]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(seen)
