"""QLoRA: storage and back is bitsandbytes' and the oracle's, nothing dequantised stays, and N ranks hold a layer in N
parts."""

from typing import Any

import pytest
import torch

from harness.run.lab import Lab
from harness.spec import Case, Measurement, ModelConfig, Topology, Workload
from impls.finetuning.nf4.problem import plain as stored
from impls.finetuning.qlora import CARD, claims, laws
from impls.finetuning.qlora.grid import BLOCKS
from impls.finetuning.qlora.reference import FrozenProduct, Whole
from impls.finetuning.qlora.storage import Format, Packed

CPU = torch.device("cpu")
ODD = ModelConfig(97, 23, 41, 2, 4, 2, 6)
WORK = Workload("odd_codes", ODD, batch_size=8, micro_batches=2, sequence_length=11, min_length=1, max_grad_norm=0.3)
# Odd numbers of weights, of scales, of scales of scales; one weight; and a block of zeros.
SHAPES = [(1, 1), (3, 21), (8, 8), (5, 77), (130, 129)]
KINDS = [(True, False), (True, True), (False, False), (False, True)]


def matrix(d: int, k: int) -> torch.Tensor:
    drawn = torch.randn(d, k, generator=torch.Generator().manual_seed(d))
    drawn.view(-1)[64:128] = 0
    return drawn


def size(packed: Packed) -> int:
    return sum(tensor.nbytes for tensor in packed)


@pytest.mark.parametrize(("normal", "double"), KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_comes_back_as_the_oracle_says_bit_by_bit_from_the_promised_bytes(
    shape: tuple[int, int], normal: bool, double: bool
) -> None:
    whole, four = matrix(*shape), Format(normal, double, CPU)
    packed = four.pack(whole)
    assert torch.equal(four.unpack(packed, shape, torch.float32), stored({"W": whole}, normal, double)["W"])
    assert size(packed) == laws.stored(whole.numel(), double)


@pytest.mark.parametrize("normal", [True, False])
def test_codes_and_scales_are_those_of_bitsandbytes(normal: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    whole = matrix(64, 128)
    theirs, state = functional.quantize_4bit(whole, blocksize=64, quant_type="nf4" if normal else "fp4")
    packed = Format(normal, False, CPU).pack(whole)
    assert torch.equal(packed.scales, state.absmax)
    if normal:  # FP4's table is sorted by bits there
        assert torch.equal(packed.codes, theirs.flatten())


def test_a_large_matrix_takes_4_127_bits_a_weight() -> None:
    elements = 8192 * 22016
    assert 8 * laws.stored(elements, True) / elements == pytest.approx(4.127, abs=5e-4)
    assert 8 * laws.stored(elements, False) / elements == 4.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_has_the_slope_of_the_rounded_weights_and_saves_nothing(dtype: torch.dtype) -> None:
    four, shape = Format(True, True, CPU), (24, 40)
    base = Whole(four.pack(matrix(*shape)), shape, four)
    x, kept = torch.randn(5, 40, dtype=dtype, requires_grad=True), []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = FrozenProduct.apply(x, base)
    slope = torch.randn_like(y)
    y.backward(slope)
    rounded = base.dequantised(dtype)
    assert kept == []
    assert torch.equal(y, torch.nn.functional.linear(x, rounded))
    assert x.grad is not None
    assert torch.equal(x.grad, slope @ rounded)


def test_states_are_divided_over_the_ranks() -> None:
    options: dict[str, Any] = {"rank": 4, "double": True}
    base = sum(laws.layers(BLOCKS.model, True))
    whole = laws.states(BLOCKS, Topology(dp=4), **options)
    for ranks in (1, 2, 4):
        part = laws.states(BLOCKS, Topology(dp=ranks), sharded=True, **options)
        assert whole - part == pytest.approx(base - base / ranks, abs=BLOCKS.model.num_hidden_layers)


def test_a_divided_base_sends_its_parts_twice_a_micro_batch() -> None:
    options: dict[str, Any] = {"rank": 4, "double": True}
    adapters = laws.traffic(BLOCKS, Topology(dp=2), **options)
    with_base = laws.traffic(BLOCKS, Topology(dp=2), sharded=True, **options)
    assert adapters is not None
    assert with_base is not None
    parts = sum(-(-held // 2) for held in laws.layers(BLOCKS.model, True))
    assert with_base - adapters == 2 * BLOCKS.micro_batches * parts
    assert laws.traffic(BLOCKS, Topology(), **options) is None


def failed(found: list[Measurement]) -> dict[str, str]:
    return {measurement.quantity: measurement.reason for measurement in found if measurement.verdict != "pass"}


@pytest.mark.parametrize("variant", ["qlora", "qlora_sharded"])
def test_ranks_with_uneven_matrices_compute_what_the_dense_model_does(lab: Lab, variant: str) -> None:
    case = Case(CARD.name, variant, "reference", Topology(dp=2), WORK)
    for measure in ("parity", "traffic", "memory"):
        assert failed(lab.measure(measure, case)) == {}


def test_65_billion_parameters_fit_on_48_gb() -> None:
    found = claims.llama([])
    assert found.value is not None
    assert 40 < found.value < 48


def test_measured_bits_need_both_variants() -> None:
    def record(variant: str, more: float = 0.0) -> dict[str, Any]:
        value = laws.states(BLOCKS, Topology(), rank=4, double=variant == "qlora") + more
        return {
            "measure": "memory",
            "quantity": "states",
            "engine": "reference",
            "variant": variant,
            "workload": BLOCKS.name,
            "dtype": "fp32",
            "value": value,
        }

    both = [record("qlora"), record("qlora_single")]
    assert claims.bits(both[:1]).verdict == claims.bits([]).verdict == "inconclusive"
    assert claims.bits(both).verdict == "pass"
    assert claims.bits([record("qlora", 2000.0), both[1]]).verdict == "fail"
