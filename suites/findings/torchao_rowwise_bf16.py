"""Float8Linear with the rowwise recipe returns float32 numbers that were rounded to bfloat16.

A user converts a float32 model with torchao's recipe for rows. Operands are FP8 and products are summed in float32, but
outputs and gradients have 8 bits. The tensorwise recipe, the control, keeps float32.
"""

import sys

import torch
from torchao.float8.config import Float8LinearConfig
from torchao.float8.float8_linear import Float8Linear


def rounded(recipe):
    """Whether every output and every gradient of a float32 layer is a bfloat16 number."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 64, bias=False)
    layer = Float8Linear.from_float(plain, Float8LinearConfig.from_recipe_name(recipe))
    x = torch.randn(64, 64, requires_grad=True)
    y = layer(x)
    y.backward(torch.randn_like(y))
    found = [y.detach(), x.grad]
    assert all(each.dtype == torch.float32 for each in found)
    return [bool((each.bfloat16().float() == each).all()) for each in found]


def main():
    control, found = rounded("tensorwise"), rounded("rowwise")
    print(f"expected outputs and input gradients that are all bfloat16 numbers: [False, False] (tensorwise: {control})")
    print(f"found    {found} (rowwise)")
    if any(control):
        raise RuntimeError("tensorwise outputs are rounded to bfloat16 too")
    return any(found)


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
