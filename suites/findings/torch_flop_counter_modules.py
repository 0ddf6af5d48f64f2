"""FlopCounterMode's table by module adds the backward products of a module to those of its siblings.

A user reads from the table which part of a layer is expensive. Three Linears of one size read the same tensor, as the
projections of queries, keys and values do. In the backward pass a module is left when the gradient of its input is
taken up, which for all three is after the last one's products. In the control each reads the output of the one before.
"""

import sys

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

TOKENS, H, NAMES = 8, 16, ("q", "k", "v")


class Projections(nn.Module):
    def __init__(self):
        super().__init__()
        for name in NAMES:
            setattr(self, name, nn.Linear(H, H, bias=False))

    def forward(self, x, siblings):
        return self.q(x) + self.k(x) + self.v(x) if siblings else self.v(self.k(self.q(x)))


def counted(siblings):
    model, x = Projections(), torch.randn(TOKENS, H, requires_grad=True)
    with FlopCounterMode(display=False, depth=None) as counter:
        model(x, siblings).sum().backward()
    table = counter.get_flop_counts()
    return [sum(table[f"Projections.{name}"].values()) for name in NAMES], counter.get_total_flops()


try:
    expected = 3 * 2 * TOKENS * H * H
    (control, total), (found, same) = counted(siblings=False), counted(siblings=True)
    if control != [expected] * 3 or not total == same == 3 * expected:
        raise RuntimeError(f"one after the other they count {control}, and all {total} and {same}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected {dict.fromkeys(NAMES, expected)}, together {same:,}")
print(f"found    {dict(zip(NAMES, found, strict=True))}, together {same:,}")
wrong = found != [expected] * 3
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
