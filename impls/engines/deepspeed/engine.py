"""DeepSpeed's engine around our decoder: code shared by its adapters."""

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.mesh import device, share
from impls.common.optimizer import optimizer
from impls.common.precision import without_loss_scale
from impls.common.step import mean_loss
from impls.common.weights import build_model
from impls.engines.extensions import folder

os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(folder()))
if not torch.cuda.is_available():
    # Read at import: DeepSpeed must not choose its own device.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.ops
import deepspeed.runtime.zero.muon.muon_optimizer  # initialize() imports it for seconds: better before the fork
from deepspeed.ops import op_builder
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
if not torch.cuda.is_available():
    # A faster all-reduce in shared memory, which DeepSpeed would compile for 40 s at the first start; gloo suffices.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def configuration(workload: Workload, topology: Topology, zero: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSpeed's configuration for this workload; ``zero`` is its section ``zero_optimization``."""
    return {
        "train_micro_batch_size_per_gpu": workload.batch_size // (topology.dp * workload.micro_batches),
        "gradient_accumulation_steps": workload.micro_batches,
        "gradient_clipping": workload.max_grad_norm,  # its default is 1.0
        "bf16": {"enabled": workload.dtype == "bf16"},
        # Gradients are kept and sent in the weights' own precision, as the laws assume.
        "data_types": {"grad_accum_dtype": workload.dtype},
        "communication_data_type": workload.dtype,
        "zero_allow_untested_optimizer": True,  # PyTorch's SGD is
        "zero_optimization": dict(zero),
    }


def asked(settings: Mapping[str, Any], workload: Workload) -> dict[str, Any]:
    """Only those of the settings that the work itself asks for; the others stay at DeepSpeed's defaults."""
    tuned = {"data_types", "communication_data_type"} | (set() if workload.max_grad_norm else {"gradient_clipping"})
    return {name: value for name, value in settings.items() if name not in tuned}


def builder(name: str) -> Any:
    """The builder of one of DeepSpeed's operators, such as ``"CPUAdamBuilder"``."""
    return getattr(op_builder, name)()


class Engine:
    """A training engine; ``zero`` is the configuration's section ``zero_optimization``, ``sections`` are further ones.
    They may include an ``optimizer``; otherwise PyTorch's is used. ``model``: the workload's decoder, unless one is
    given, which may have frozen parameters."""

    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        zero: Mapping[str, Any],
        model: nn.Module | None = None,
        **sections: Any,
    ) -> None:
        if workload.dtype == "fp64":
            raise Unsupported("DeepSpeed's engine trains in float32, float16 and bfloat16 only")
        if "fp16" not in sections:
            without_loss_scale(workload, "DeepSpeed")
        self.workload, self.topology = workload, topology
        self.rank = dist.get_rank()
        model = build_model(workload) if model is None else model
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        config = self.settings(zero) | sections
        chosen = None if "optimizer" in sections else optimizer(trained.values(), workload)
        self.configuration = json.dumps(config, default=str)
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=chosen, config=config, dist_init_required=False)
        self.names: dict[str, Any] = trained

    def settings(self, zero: Mapping[str, Any]) -> dict[str, Any]:
        return configuration(self.workload, self.topology, zero)

    def backward(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=device())
        for index, (micro, part) in enumerate(share(batch, self.workload, self.rank, self.topology.dp)):
            if index:
                self.engine.step()  # between micro-batches it only counts
            loss = mean_loss(self.engine, micro, self.workload) * self.weigh(part)
            self.engine.backward(loss * self.workload.micro_batches)  # the engine divides by it
            total += loss.detach()
        return total

    def weigh(self, part: float) -> float:
        """The weight of a micro-batch's mean loss: its part of the batch's tokens; DDP takes the mean."""
        return part * self.topology.dp

    def update(self) -> None:
        self.engine.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: safe_get_full_grad(parameter).cpu() for name, parameter in self.names.items()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: safe_get_full_fp32_param(parameter).detach().cpu() for name, parameter in self.names.items()}


class DataParallel(Engine):
    """Without ZeRO: every rank holds everything, gradients are all-reduced."""

    def __init__(self, workload: Workload, topology: Topology) -> None:
        super().__init__(workload, topology, {"stage": 0})

    def parameters(self) -> Mapping[str, Tensor]:
        masters = self.engine.optimizer.param_groups[0]["params"]  # float32 copies in bfloat16
        return {name: master.detach().cpu() for name, master in zip(self.names, masters, strict=True)}
