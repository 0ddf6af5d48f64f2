"""DeepSpeed's AutoTP on our decoder."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Topology, Unsupported, Workload
from impls.engines.deepspeed.tensor_parallel import TensorParallel


class Saved(TensorParallel):
    """The same engine; its parameters are read from the file that DeepSpeed writes for other programs."""

    def parameters(self) -> Mapping[str, Tensor]:
        with tempfile.TemporaryDirectory(prefix="plumbline-saved-") as folder:  # each rank's own; the first writes
            self.engine.save_16bit_model(folder, "model.bin")
            found = torch.load(Path(folder) / "model.bin") if dist.get_rank() == 0 else {}
        return {name: found[name] for name in self.names if name in found}


def build(workload: Workload, topology: Topology) -> TensorParallel:
    return TensorParallel(workload, topology)


def build_saved(workload: Workload, topology: Topology) -> Saved:
    if workload.dtype == "bf16":
        raise Unsupported("it saves the model in its own dtype, without the masters by which updates are judged")
    return Saved(workload, topology)
