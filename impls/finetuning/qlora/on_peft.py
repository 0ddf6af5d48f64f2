"""bitsandbytes' Linear4bit in our decoder and PEFT's LoRA on it, as Transformers' ``load_in_4bit`` sets them up, with
gradients averaged by DistributedDataParallel, or under FSDP2.

bitsandbytes quantises the weights itself. PEFT keeps adapters in float32 above a base that computes in bfloat16
(``autocast_adapter_dtype``, its default)."""

import contextlib
from collections.abc import Mapping
from typing import Any

import bitsandbytes
import peft
import torch
import torch.distributed as dist
from bitsandbytes.backends.cpu.ops import _has_avx512
from bitsandbytes.functional import has_avx512bf16
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.decoder import Decoder
from impls.common.experts import without_experts
from impls.common.mesh import device, mesh
from impls.common.optimizer import clip, optimizer
from impls.common.step import accumulate
from impls.common.weights import build_model
from impls.finetuning.lora.plain import initial
from impls.finetuning.lora.shapes import TARGETS, targets

PREFIX = "base_model.model."
PACKED = 32, 64  # rows and columns, whose multiples its kernel for evaluations takes
WIDTH, BLOCK = 16, 64  # of AVX512 and of a scale


def quantised(workload: Workload, normal: bool, double: bool) -> Decoder:
    """The decoder with all matrices of its layers as Linear4bit, quantised as they arrive on the device."""
    without_experts(workload, "adapters are set up here with")
    if workload.dtype == "fp64":
        raise Unsupported("bitsandbytes stores float32, float16 and bfloat16")
    model = build_model(workload).requires_grad_(False)
    for name, (rows, columns) in targets(workload.model):
        weight, bias = model.get_submodule(name).weight, model.get_submodule(name).bias
        kind = "nf4" if normal else "fp4"
        layer = bitsandbytes.nn.Linear4bit(
            columns,
            rows,
            bias=bias is not None,
            compute_dtype=weight.dtype,
            compress_statistics=double,
            quant_type=kind,
        )
        layer.bias = bias
        layer.weight = bitsandbytes.nn.Params4bit(
            weight.data, requires_grad=False, compress_statistics=double, quant_type=kind, module=layer
        ).to(weight.device)
        model.set_submodule(name, layer)
    model.is_loaded_in_4bit = True  # PEFT asks for it, as Transformers sets it
    return model


def adapted(workload: Workload, rank: int, alpha: float, normal: bool, double: bool) -> peft.PeftModel:
    """PEFT's adapters on it, which have the common start."""
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS), lora_dropout=0.0)
    model = peft.get_peft_model(quantised(workload, normal, double), config)
    weights = trained(model)
    with torch.no_grad():
        for name, tensor in initial(workload, rank):
            weights.pop(name).copy_(tensor)
    if weights:
        raise ValueError(f"PEFT trains {', '.join(weights)} too")
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    named = ((name.removeprefix(PREFIX).replace(".default.", "."), p) for name, p in model.named_parameters())
    return {name: p for name, p in named if p.requires_grad}


def layers(model: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)}


def configuration(rank: int, alpha: float, normal: bool, double: bool) -> str:
    kind = f"quant_type={'nf4' if normal else 'fp4'}, compress_statistics={double}"
    return f"Linear4bit({kind}); LoraConfig(r={rank}, lora_alpha={alpha}, target_modules={list(TARGETS)})"


class Peft:
    def __init__(self, workload: Workload, topology: Topology, evaluates: bool, **variant: Any) -> None:
        self.workload, self.ranks, self.evaluates = workload, topology.dp, evaluates
        self.peft, self.configuration = adapted(workload, **variant), configuration(**variant)
        self.weights, self.base = trained(self.peft), layers(self.peft)
        self.optimizer = optimizer(self.weights.values(), workload)
        self.model: nn.Module = self.peft
        if self.ranks > 1:
            devices = [device()] if device().type == "cuda" else None
            self.model = DistributedDataParallel(self.peft, device_ids=devices, gradient_as_bucket_view=True)

    def backward(self, batch: Batch) -> Tensor:
        self.tokens = batch.inputs[:1]
        return accumulate(self.model, batch, self.workload, dist.get_rank(), self.ranks, around=self.around)

    def around(self, last: bool) -> contextlib.AbstractContextManager[object]:
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def update(self) -> None:
        clip([p.grad for p in self.weights.values() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.evaluates:
            self.peft.eval()
            with torch.no_grad():
                self.peft(self.tokens.to(device()))
            self.peft.train()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: p.grad.cpu() for name, p in self.weights.items() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: p.detach().cpu() for name, p in self.weights.items()}

    def frozen(self) -> Mapping[str, Tensor]:
        """Codes and scales, by bits."""
        held: dict[str, Tensor] = {}
        for name, layer in self.base.items():
            held |= {f"{name}.codes": layer.weight.data, f"{name}.scales": layer.weight.quant_state.absmax}
        return held


def narrow(workload: Workload) -> bool:
    """Whether this CPU's kernel takes rows that are not whole blocks for ones that are."""
    columns = [shape[1] for _, shape in targets(workload.model)]
    return device().type == "cpu" and bool(_has_avx512) and any(k % WIDTH == 0 and k % BLOCK for k in columns)


def whole_rows(workload: Workload) -> None:
    if narrow(workload):
        raise Unsupported("with AVX512, bitsandbytes takes wrong scales for rows of 16 n columns that are not 64 n")


def build(workload: Workload, topology: Topology, **variant: Any) -> Peft:
    whole_rows(workload)
    return Peft(workload, topology, evaluates=False, **variant)


def build_narrow(workload: Workload, topology: Topology, **variant: Any) -> Peft:
    """Only work that shows these scales."""
    if not narrow(workload):
        raise Unsupported("it shows rows of 16 n columns that are not 64 n, on a CPU with AVX512")
    return Peft(workload, topology, evaluates=False, **variant)


def build_evaluated(workload: Workload, topology: Topology, **variant: Any) -> Peft:
    """An evaluation after each step, which must change nothing."""
    whole_rows(workload)
    if device().type == "cpu":
        if not has_avx512bf16():
            raise Unsupported("the kernel for evaluations, which is at fault, needs a CPU with AVX512-BF16")
        if any(size % each for _, shape in targets(workload.model) for size, each in zip(shape, PACKED, strict=True)):
            raise Unsupported("on a CPU with AVX512-BF16, bitsandbytes evaluates only 32 n rows and 64 n columns")
    return Peft(workload, topology, evaluates=True, **variant)


class PeftFsdp2:
    """FSDP-QLoRA: FSDP2 divides the packed codes, the adapters and everything else that is a parameter; the scales of
    the codes are no parameters, and are whole on each rank."""

    def __init__(self, workload: Workload, topology: Topology, **variant: Any) -> None:
        self.workload, self.topology = workload, topology
        self.model = adapted(workload, **variant)
        self.configuration = f"fully_shard(layer), fully_shard(model); {configuration(**variant)}"
        shards = mesh(topology)["dp"]
        for layer in self.model.base_model.model.model.layers:
            fully_shard(layer, mesh=shards)
        fully_shard(self.model, mesh=shards)
        # DTensor has a fused AdamW, but no fused SGD.
        self.optimizer = optimizer(trained(self.model).values(), workload, fused=workload.optimizer == "adamw")

    def backward(self, batch: Batch) -> Tensor:
        return accumulate(self.model, batch, self.workload, dist.get_rank(), self.topology.dp)

    def update(self) -> None:
        if self.workload.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained(self.model).values(), self.workload.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: whole(p.grad) for name, p in trained(self.model).items() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: whole(p.detach()) for name, p in trained(self.model).items()}

    def frozen(self) -> Mapping[str, Tensor]:
        """This rank's codes, and all scales."""
        held: dict[str, Tensor] = {}
        for name, layer in layers(self.model).items():
            assert isinstance(layer.weight, DTensor)
            held |= {f"{name}.codes": layer.weight.to_local(), f"{name}.scales": layer.quant_state.absmax}
        return held


def whole(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.full_tensor().cpu()


def build_fsdp2(workload: Workload, topology: Topology, sharded: bool, **variant: Any) -> PeftFsdp2:
    whole_rows(workload)
    return PeftFsdp2(workload, topology, **variant)
