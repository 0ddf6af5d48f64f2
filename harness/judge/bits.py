"""Bitwise equality."""

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.spec import Measurement

Kinds = Mapping[str, Mapping[str, Tensor]]


def judge(ours: Kinds, twins: Kinds, twin: str) -> Measurement:
    """One measurement: the number of tensors, of all kinds, that differ from the twin's in any bit."""
    places = [(kind, name) for kind in sorted(twins) for name in sorted(twins[kind])]
    wrong = [(kind, name) for kind, name in places if not _equal(ours.get(kind, {}).get(name), twins[kind][name])]
    text = f"{len(wrong)} of {len(places)} tensors differ from those of {twin}"
    if wrong:
        text += f", first {wrong[0][1]} in {wrong[0][0]}"
    return Measurement("bits", "tensors", float(len(wrong)), "tensors", "fail" if wrong else "pass", text, bound=0.0)


def _equal(ours: Tensor | None, theirs: Tensor) -> bool:
    """NaN equals the same NaN, and 0 does not equal −0."""
    if ours is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    return torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))
