"""DeepSpeed's ZeRO-Offload (stage 2), ZeRO-Infinity (stage 3) and ZenFlow."""

import ctypes
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from deepspeed.ops.op_builder.builder import OpBuilder

from harness.spec import Topology, Unsupported, Workload
from impls.engines.deepspeed.zero import Zero
from impls.parallelism.zero_offload import operators


def require(operator: str) -> None:
    """Loads a compiled operator; raises Unsupported if it is not compiled, since compilation takes minutes and a case
    has two. PyTorch would check for changes in each rank in turn, behind a lock file that a killed rank leaves
    behind."""
    if why := operators.missing(operator):
        raise Unsupported(why)
    for library in operators.libraries(operator):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # the next one may call it
        spec = importlib.util.spec_from_file_location(library.stem, library)
        assert spec is not None
        assert spec.loader is not None
        OpBuilder._loaded_ops[library.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(OpBuilder._loaded_ops[library.stem])


class Offload(Zero):
    """``sections`` belong to zero_optimization; ``own`` is the engine's optimizer by its configuration, otherwise
    PyTorch's is used."""

    def __init__(
        self, workload: Workload, topology: Topology, stage: int, sections: Mapping[str, Any], **own: Any
    ) -> None:
        chosen = {"optimizer": own} if own else {"zero_force_ds_cpu_optimizer": False}
        super().__init__(workload, topology, stage, sections, **chosen)
        # Locked buffers for files bypass PyTorch's allocator and the meter, so as many visible bytes are allocated.
        self.stand_in = [torch.empty(size, dtype=torch.uint8) for size in self._locked()]

    def _locked(self) -> Iterator[int]:
        """Bytes of each buffer that its asynchronous reads and writes go through."""
        swapper = getattr(self.engine.optimizer, "optimizer_swapper", None)
        if swapper is not None:
            yield from (buffer.nbytes for buffer in swapper.swap_buffer_manager.all_buffers)
        swappers = {getattr(parameter, "nvme_swapper", None) for parameter in self.names.values()} - {None}
        yield from (swapper.buffers.nbytes for swapper in swappers)


def build(workload: Workload, topology: Topology, stage: int, states_on: str, weights_on: str) -> Offload:
    pinned = torch.cuda.is_available()
    sections: dict[str, Any] = {"offload_optimizer": {"device": _device(states_on), "pin_memory": pinned}}
    if weights_on != "device":
        sections["offload_param"] = {"device": _device(weights_on), "pin_memory": pinned}
    if states_on == "files":
        if stage < 3:
            raise Unsupported(
                "DeepSpeed's stages 1 and 2 treat the device nvme as cpu without a warning: no file is written"
            )
        require("async_io")
        # The world's folder is removed even if its ranks are killed.
        folder = tempfile.mkdtemp(dir=os.environ.get("PLUMBLINE_SCRATCH"))
        for section in sections.values():
            section["nvme_path"] = folder
        # In proportion to the model, like its settings for 1e9 parameters; but tensors below 1 MiB are not moved.
        sections["sub_group_size"] = max(workload.model.parameters // (16 * topology.dp), 2**18)
        sections["offload_optimizer"] |= {"pipeline_read": True, "pipeline_write": True, "buffer_count": 12}
    if weights_on == "files":
        if workload.dtype == "fp32" and not pinned:
            raise Unsupported(
                "DeepSpeed's parameter files are bfloat16 on a CPU whatever the model is: zero.Init's dtype"
            )
        largest = max(torch.Size(shape).numel() for _, shape in workload.model.shapes())
        sections["offload_param"] |= {"buffer_size": -(-largest // topology.dp), "max_in_cpu": 0}
    return Offload(workload, topology, stage, sections)


def _device(place: str) -> str:
    return {"host": "cpu", "files": "nvme"}[place]


def build_zenflow(workload: Workload, topology: Topology, stage: int, states_on: str, weights_on: str) -> Offload:
    """ZenFlow (Lan et al. 2025), configured to update every gradient in every step, so that it equals AdamW."""
    if workload.optimizer != "adamw":
        raise Unsupported(f"ZenFlow takes AdamW only, not {workload.optimizer}")
    require("cpu_adam")
    sections = {
        "offload_optimizer": {"device": "cpu", "pin_memory": torch.cuda.is_available()},
        "zenflow": {
            "topk_ratio": 0.5,
            "select_strategy": "step",
            "select_interval": 1,
            "update_interval": 1,
            "overlap_step": False,
        },
    }
    adamw = {
        "lr": workload.lr,
        "betas": list(workload.betas),
        "eps": workload.eps,
        "weight_decay": workload.weight_decay,
    }
    return Offload(workload, topology, stage, sections, type="AdamW", params=adamw)
