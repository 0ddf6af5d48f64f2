"""float16: the initial weights in it, and the adapters that would scale the loss or drop the masters unasked."""

import importlib

import pytest
import torch

from harness.spec import Topology, Unsupported, Workload
from impls.common.weights import TORCH_DTYPES, initial

FP16 = Workload(dtype="fp16")


def test_float16_starts_from_the_weights_of_every_precision_up_to_its_finest_step() -> None:
    off = total = 0
    for _, tensor in initial(FP16):
        narrow = tensor.to(TORCH_DTYPES["fp16"]).float()
        assert (narrow - tensor).abs().max() <= 2**-25
        off += int((narrow != tensor).sum())
        total += tensor.numel()
    assert off < total / 10_000


def test_the_other_precisions_start_from_the_same_weights_to_the_bit() -> None:
    for _, tensor in initial(Workload()):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            assert torch.equal(tensor.to(dtype).float(), tensor)


@pytest.mark.filterwarnings("ignore")  # the engines' own, at import
@pytest.mark.parametrize(
    ("engine", "module", "name", "more"),
    [
        ("deepspeed", "impls.engines.deepspeed.engine", "DataParallel", ()),
        ("deepspeed", "impls.engines.deepspeed.tensor_parallel", "TensorParallel", ()),
        ("deepspeed", "impls.engines.deepspeed.pipeline", "Pipeline", ({},)),
        ("megatron.core", "impls.engines.megatron.data_parallel", "DataParallel", ()),
        ("megatron.core", "impls.engines.megatron.gpt", "Gpt", ()),
    ],
)
def test_an_engine_that_scales_the_loss_refuses_float16(engine: str, module: str, name: str, more: tuple) -> None:
    pytest.importorskip(engine)
    build = getattr(importlib.import_module(module), name)
    with pytest.raises(Unsupported, match="scales the loss in float16, which the topic mixed_precision tests"):
        build(FP16, Topology(), *more)
