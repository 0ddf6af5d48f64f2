"""On a CPU with AVX512, a stored matrix comes back wrong if its rows are 16 n elements long, but not whole blocks.

A user stores a matrix of rows of 96 elements in NF4, in blocks of 64. Blocks run on over the ends of rows. The kernel
for rows of a multiple of 16 counts them anew in each row, ⌊96/64⌋ = 1 a row, and takes scales of earlier blocks.
"""

import logging
import sys

import torch

logging.disable()
BLOCK = 64


def error(columns):
    """How far dequantise_4bit is from code · scale, relative."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(torch.randn(8, columns), blocksize=BLOCK, quant_type="nf4")
    codes = torch.stack((packed.flatten() >> 4, packed.flatten() & 15), 1).flatten().long()
    expected = (state.code[codes] * state.absmax.repeat_interleave(BLOCK)[: len(codes)]).view(8, columns)
    return float((dequantize_4bit(packed, state) - expected).norm() / expected.norm())


def main():
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        raise RuntimeError("this CPU has no AVX512, whose kernel is at fault")
    torch.manual_seed(0)
    control, found = max(error(128), error(98)), error(96)
    print(f"expected an error of {control:.1g} (rows of 128 and of 98 elements)")
    print(f"found    an error of {found:.1g} with rows of 96")
    if control > 1e-6:
        raise RuntimeError("other rows are wrong too")
    return found > 1e-3


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error_:
        print(f"cannot be judged: {error_}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
