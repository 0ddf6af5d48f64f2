"""torchao's NF4: a block of zeros comes back as other numbers.

A user stores a matrix with 64 zeros in a row, as padded rows of an embedding and pruned weights have. The block's scale
is 0, so 0/0 finds no nearest value and gets the code 0, which is -1; and its scale, rounded to one of 256 steps, is not
0 any more, unless it is the farthest from the mean: here one outlying weight is farther. Zeros beside a small number
are right.
"""

import sys
import warnings

import torch

warnings.simplefilter("ignore")
BLOCK = 64


def back(start):
    """The first block as it comes back, if it starts as this."""
    from torchao.quantization import NF4Tensor

    torch.manual_seed(0)
    matrix = torch.randn(128, 128)
    matrix[1, 0] = 20.0
    matrix[0, :BLOCK] = start
    return NF4Tensor.from_tensor(matrix, BLOCK, 256).get_original_weight()[0, :BLOCK]


def main():
    almost = torch.zeros(BLOCK)
    almost[0] = 1e-6
    control, found = back(almost)[1:], back(0.0)
    print(
        f"expected 0 for each of {BLOCK} zeros, as beside a single 1e-6 (largest of the others: {control.abs().max()})"
    )
    print(f"found    {found.min():.4f} for all of them, where weights are normally distributed with σ = 1")
    if control.any():
        raise RuntimeError("the control, a block with one number that is not 0, is wrong too")
    return bool(found.any())


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
