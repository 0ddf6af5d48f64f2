"""DeepSpeed's AutoTP on our decoder: its rules for cutting layers, written for our names, and its own
vocabulary-parallel head and loss."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import deepspeed
import torch.distributed as dist
from deepspeed.utils import groups, safe_get_full_grad
from torch import Tensor

from harness.spec import ModelConfig, Topology, Unsupported, Workload
from impls.common.decoder import Decoder
from impls.common.experts import without_experts
from impls.common.mesh import device
from impls.common.optimizer import optimizer
from impls.common.precision import without_loss_scale
from impls.common.shards import collect, shard
from impls.common.weights import TORCH_DTYPES, fill
from impls.engines.deepspeed.engine import Engine, configuration

RULES = [
    {"patterns": [r".*\.(q|k|v|gate|up)_proj\.weight$"], "partition_type": "column"},
    {"patterns": [r".*\.(o|down)_proj\.weight$"], "partition_type": "row"},
    {"patterns": [r".*\.(q|k)_norm\.weight$"], "partition_type": "skip", "grad_allreduce": True},
]


class HookedDecoder(Decoder):
    """Takes its loss from ``loss_function``, the hook through which AutoTP installs its vocabulary-parallel loss."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.loss_function: Callable[..., Tensor] | None = None

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.loss_function is None:  # one rank: AutoTP does nothing
            return super().forward(tokens, labels)
        return self.loss_function(self.lm_head(self.model(tokens)), shift_labels=labels)


class TensorParallel(Engine):
    def __init__(self, workload: Workload, topology: Topology) -> None:
        if workload.dtype == "fp64":
            raise Unsupported("DeepSpeed's engine trains in float32, float16 and bfloat16 only")
        without_loss_scale(workload, "DeepSpeed")
        without_experts(workload, "AutoTP has rules here for")
        self.workload, self.topology = workload, topology
        self.rank = dist.get_rank() // topology.tp  # group of the data-parallel ranks
        model = HookedDecoder(workload.model).to(device(), TORCH_DTYPES[workload.dtype])
        fill(model, workload)
        config = configuration(workload, topology, {"stage": 0})
        if topology.tp > 1:
            config["tensor_parallel"] = {
                "autotp_size": topology.tp,
                "vocab_parallel_lm_head": True,
                "partition_config": {"use_default_specs": False, "layer_specs": RULES},
            }
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer(model.parameters(), workload), config=config, dist_init_required=False
        )
        self.names: dict[str, Any] = dict(model.named_parameters())

    def gradients(self) -> Mapping[str, Tensor]:
        return self._collect(safe_get_full_grad(parameter) for parameter in self.names.values())

    def parameters(self) -> Mapping[str, Tensor]:
        return self._collect(self.engine.optimizer.param_groups[0]["params"])  # float32 copies in bfloat16

    def _collect(self, held: Iterable[Tensor]) -> Mapping[str, Tensor]:
        """The full tensors on the first rank. AutoTP leaves an embedding that is not tied to the head whole."""
        shapes, t = dict(self.workload.model.shapes()), self.topology.tp
        group: Any = groups.get_tensor_model_parallel_group() if t > 1 else dist.group.WORLD
        parts = {
            name: shard(name, tensor, group.rank(), t) if tensor.shape == shapes[name] else tensor
            for name, tensor in zip(self.names, held, strict=True)
        }
        return collect(parts, group)
