"""clip_grad_norm_ takes the norm of bf16 gradients in bf16: up to 0.4 % off, so it clips to another norm.

A user trains in pure bf16 and clips to 1.0. Each tensor's norm is rounded to bf16 and so is the norm of these norms,
hence the result depends on how the parameters are cut as well.
"""

import sys

import torch

SIZE, TENSORS, MAX_NORM = 257, 257, 1.0  # ones alone: each tensor's norm is √257 = 16.03, the total norm is 257


def clip(dtype):
    parameters = [torch.nn.Parameter(torch.zeros(SIZE, dtype=dtype)) for _ in range(TENSORS)]
    for p in parameters:
        p.grad = torch.ones_like(p)
    norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
    clipped = torch.cat([p.grad.double() for p in parameters]).norm()
    return norm.item(), clipped.item()


def main():
    exact = float(SIZE * TENSORS) ** 0.5
    control, clipped = clip(torch.float32)
    print(f"expected norm {exact:.4f}, clipped {MAX_NORM:.4f} (float32: {control:.4f}, clipped {clipped:.4f})")
    norm, clipped = clip(torch.bfloat16)
    off = abs(norm - exact) / exact
    print(f"found    norm {norm:.4f}, clipped {clipped:.4f} in bf16, off by {off:.2%}")
    if abs(control - exact) > 1e-4 * exact:
        raise RuntimeError("the control, float32, is wrong too")
    return off > 1e-3


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
