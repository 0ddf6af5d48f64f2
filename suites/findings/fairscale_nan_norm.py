"""FairScale's OSS does not clip at all in a step whose gradient norm is NaN.

A user calls OSS's `clip_grad_norm`, and one batch gives one weight a NaN gradient. The norm of all gradients is NaN,
but the other weights are updated by their whole gradients, however large, without an error or a warning.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
from fairscale.optim.oss import OSS
from torch import nn

CLIP, SIZE = 1.0, 30.0


def step(factor, sharded):
    """The size of the first weight's update, where the gradients are SIZE and ``factor``."""
    weights = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    optimizer = OSS(weights, torch.optim.SGD, lr=1.0) if sharded else torch.optim.SGD(weights, lr=1.0)
    (SIZE * weights[0] + factor * weights[1]).sum().backward()
    norm = optimizer.clip_grad_norm(CLIP) if sharded else nn.utils.clip_grad_norm_(weights, CLIP)
    optimizer.step()
    return norm.item(), weights[0].abs().item()


def main():
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        norm, clipped = step(40.0, sharded=True)
        _, expected = step(torch.nan, sharded=False)
        unknown, found = step(torch.nan, sharded=True)
        dist.destroy_process_group()
    print(f"expected an update of {expected}, as by PyTorch (with a finite norm of {norm}: {clipped:.4f})")
    print(f"found    an update of {found} with a norm of {unknown}")
    if not 0 < clipped <= CLIP or expected > CLIP:
        raise RuntimeError("the controls, a finite norm and PyTorch's own clipping, do not clip either")
    return found > CLIP


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
