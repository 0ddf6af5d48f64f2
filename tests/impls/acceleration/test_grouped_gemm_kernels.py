"""The Triton kernels of grouped products are compiled for a Hopper GPU, which needs none."""

import pytest

triton = pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from impls.acceleration.grouped_gemm import on_triton  # noqa: E402

NAMES = {torch.bfloat16: "*bf16", on_triton.E4M3: "*fp8e4nv"}
SIZES = ("columns", "length", "b_group", "b_column", "b_sum", "n", "k")  # multiples of 16, as those of real layers
HOPPER = GPUTarget("cuda", 90, 32)


def compiled(kernel: object, dtype: torch.dtype, **constants: object) -> tuple[str, int]:
    """The machine's assembler text, and the bytes of shared memory."""
    bm, bn, bk, warps, stages = on_triton.TILES[dtype]
    constants |= {"bm": bm, "bn": bn, "bk": bk, "widen": False}
    types = dict.fromkeys(("a", "b"), NAMES[dtype]) | {"s": "*bf16", "t": "*bf16", "out": "*bf16", "sizes": "*i32"}
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    aligned = [n for n, kind in signature.items() if kind.startswith("*") or (kind == "i32" and n in SIZES)]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    found = triton.compile(source, target=HOPPER, options={"num_warps": warps, "num_stages": stages})
    return found.asm["ptx"], found.metadata.shared


PLAIN = {"s": None, "t": None, "scaled": False, "even": True, "band": on_triton.BAND}


@pytest.mark.parametrize(
    ("kernel", "dtype", "constants"),
    [
        ("_rows_kernel", torch.bfloat16, {**PLAIN, "b_sum": 1}),  # y
        ("_rows_kernel", torch.bfloat16, {**PLAIN, "b_column": 1}),  # dx
        ("_weights_kernel", torch.bfloat16, {}),  # dw
        ("_rows_kernel", on_triton.E4M3, {"scaled": True, "even": True, "band": on_triton.BAND, "b_sum": 1}),
    ],
)
def test_kernels_compile_for_hopper_with_its_tensor_cores_and_a_pipeline_of_all_stages(
    kernel: str, dtype: torch.dtype, constants: dict[str, object]
) -> None:
    text, shared = compiled(getattr(on_triton, kernel), dtype, **constants)
    bm, bn, bk, _, stages = on_triton.TILES[dtype]
    assert "wgmma" in text
    assert shared >= stages * (bm + bn) * bk * dtype.itemsize
    assert ".local" not in text  # registers suffice
