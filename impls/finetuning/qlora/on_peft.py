"""bitsandbytes' Linear4bit in our decoder and PEFT's LoRA on it, as Transformers' ``load_in_4bit`` sets them up, with
gradients averaged by DistributedDataParallel, or under FSDP2.

bitsandbytes quantises the weights itself. PEFT keeps adapters in float32 above a base that computes in bfloat16
(``autocast_adapter_dtype``, its default)."""

from collections.abc import Iterable, Mapping
from typing import Any

import bitsandbytes
import peft
import torch
from bitsandbytes.backends.cpu.ops import _has_avx512
from bitsandbytes.functional import has_avx512bf16
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.decoder import Decoder
from impls.common.experts import without_experts
from impls.common.mesh import device
from impls.common.weights import build_model
from impls.engines.adapted import DataParallel
from impls.engines.peft import FullyShard, lora, trained
from impls.finetuning.lora.plain import initial
from impls.finetuning.lora.settings import settings
from impls.finetuning.lora.shapes import TARGETS, targets

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
    return lora(quantised(workload, normal, double), settings(rank, alpha), initial(workload, rank))


def layers(model: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)}


def configuration(rank: int, alpha: float, normal: bool, double: bool) -> str:
    kind = f"quant_type={'nf4' if normal else 'fp4'}, compress_statistics={double}"
    return f"Linear4bit({kind}); LoraConfig(r={rank}, lora_alpha={alpha}, target_modules={list(TARGETS)})"


def paged_adamw(weights: Iterable[nn.Parameter], workload: Workload) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW whose moments are in unified memory: CUDA moves pages of them to the host and back (§3)."""
    if workload.optimizer != "adamw":
        raise Unsupported("the paged optimizer is AdamW")
    made: torch.optim.Optimizer = bitsandbytes.optim.PagedAdamW32bit(
        weights, lr=workload.lr, betas=workload.betas, eps=workload.eps, weight_decay=workload.weight_decay
    )
    return made


class Peft(DataParallel):
    """``evaluates``: after each step, as trainers do. ``paged``: with QLoRA's optimizer."""

    def __init__(
        self, workload: Workload, topology: Topology, evaluates: bool = False, paged: bool = False, **variant: Any
    ) -> None:
        self.peft_model, self.evaluates = adapted(workload, **variant), evaluates
        model, told = self.peft_model, configuration(**variant)
        stepper = paged_adamw(trained(model).values(), workload) if paged else None
        super().__init__(workload, topology, model, trained(model), {}, told, stepper)

    def backward(self, batch: Batch) -> Tensor:
        self.tokens = batch.inputs[:1]
        return super().backward(batch)

    def update(self) -> None:
        super().update()
        if self.evaluates:
            self.peft_model.eval()
            with torch.no_grad():
                self.peft_model(self.tokens.to(device()))
            self.peft_model.train()

    def frozen(self) -> Mapping[str, Tensor]:
        """Codes and scales, by bits."""
        held: dict[str, Tensor] = {}
        for name, layer in layers(self.peft_model).items():
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
    return Peft(workload, topology, **variant)


def build_paged(workload: Workload, topology: Topology, **variant: Any) -> Peft:
    whole_rows(workload)
    return Peft(workload, topology, paged=True, **variant)


def build_narrow(workload: Workload, topology: Topology, **variant: Any) -> Peft:
    """Only work that shows these scales."""
    if not narrow(workload):
        raise Unsupported("it shows rows of 16 n columns that are not 64 n, on a CPU with AVX512")
    return Peft(workload, topology, **variant)


def build_evaluated(workload: Workload, topology: Topology, **variant: Any) -> Peft:
    """An evaluation after each step, which must change nothing."""
    whole_rows(workload)
    if device().type == "cpu":
        if not has_avx512bf16():
            raise Unsupported("the kernel for evaluations, which is at fault, needs a CPU with AVX512-BF16")
        if any(size % each for _, shape in targets(workload.model) for size, each in zip(shape, PACKED, strict=True)):
            raise Unsupported("on a CPU with AVX512-BF16, bitsandbytes evaluates only 32 n rows and 64 n columns")
    return Peft(workload, topology, evaluates=True, **variant)


class PeftFsdp2(FullyShard):
    """FSDP-QLoRA: FSDP2 divides the packed codes, the adapters and everything else that is a parameter; the scales of
    the codes are no parameters, and are whole on each rank."""

    def frozen(self) -> Mapping[str, Tensor]:
        """This rank's codes, and all scales."""
        held: dict[str, Tensor] = {}
        for name, layer in layers(self.model).items():
            assert isinstance(layer.weight, DTensor)
            held |= {f"{name}.codes": layer.weight.to_local(), f"{name}.scales": layer.quant_state.absmax}
        return held


def build_fsdp2(workload: Workload, topology: Topology, sharded: bool, **variant: Any) -> PeftFsdp2:
    whole_rows(workload)
    return PeftFsdp2(workload, topology, adapted(workload, **variant), configuration(**variant))
