"""PyTorch's DTensor: ``parallelize_module`` with column-wise, row-wise and loss parallelism (no gathered logits)."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn.utils import get_total_norm

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.decoder import Decoder
from impls.common.experts import without_experts
from impls.common.mesh import device, mesh, share
from impls.common.optimizer import MasterWeights, clip, optimizer
from impls.common.weights import TORCH_DTYPES, initial

# One all-reduce for q, k and v together, and one for gate and up: without these, each product would have its own.
_ATTENTION_INPUT = PrepareModuleInput(
    input_layouts=(Replicate(), None, None), desired_input_layouts=(Replicate(), None, None)
)
_MLP_INPUT = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate())
PLAN = {
    "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
    "model.layers.*.self_attn": _ATTENTION_INPUT,
    "model.layers.*.self_attn.q_proj": ColwiseParallel(),
    "model.layers.*.self_attn.k_proj": ColwiseParallel(),
    "model.layers.*.self_attn.v_proj": ColwiseParallel(),
    # Heads are dimension 2 of [b, s, heads, d]; the gain is replicated and its gradient a partial sum.
    "model.layers.*.self_attn.q_norm": SequenceParallel(sequence_dim=2, use_local_output=True),
    "model.layers.*.self_attn.k_norm": SequenceParallel(sequence_dim=2, use_local_output=True),
    "model.layers.*.self_attn.o_proj": RowwiseParallel(),
    "model.layers.*.mlp": _MLP_INPUT,
    "model.layers.*.mlp.gate_proj": ColwiseParallel(),
    "model.layers.*.mlp.up_proj": ColwiseParallel(),
    "model.layers.*.mlp.down_proj": RowwiseParallel(),
    "lm_head": ColwiseParallel(use_local_output=False),
}


def by_mesh(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Groups tensors by mesh, with plain ones together: multi-tensor kernels accept no mixture."""
    groups: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device_mesh if isinstance(tensor, DTensor) else None, []).append(tensor)
    return list(groups.values())


def make_optimizer(parameters: Iterable[Tensor], workload: Workload) -> torch.optim.Optimizer:
    groups = [{"params": group} for group in by_mesh(parameters)]
    if workload.optimizer == "sgd":  # its fused kernel does not accept DTensors
        return torch.optim.SGD(groups, lr=workload.lr, weight_decay=workload.weight_decay, foreach=True)
    return optimizer(groups, workload)


class TensorParallel:
    def __init__(self, workload: Workload, topology: Topology, plan: Mapping[str, ParallelStyle] = PLAN) -> None:
        if topology.dp > 1:
            raise Unsupported("DTensor's data parallelism is FSDP2: see the topic hybrid_3d")
        without_experts(workload, "parallelize_module has a plan here for")
        self.workload = workload
        with torch.device("meta"):
            self.model: nn.Module = Decoder(workload.model).to(TORCH_DTYPES[workload.dtype])
        parallelize_module(self.model, mesh(topology)["tp"], dict(plan))
        self.model.to_empty(device=device())
        if workload.model.tie_word_embeddings:  # parallelize_module and to_empty untie the embedding; both cut the rows
            self.model.lm_head.weight = self.model.model.embed_tokens.weight
        self.weights: dict[str, Any] = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, full in initial(workload):
                mine = self.weights[name]
                if isinstance(mine, DTensor):  # every rank has drawn the same weights: no communication is needed
                    full = distribute_tensor(full.to(device()), mine.device_mesh, mine.placements, src_data_rank=None)
                mine.copy_(full)
        self.optimizer = MasterWeights(self.weights.values(), workload, make_optimizer)

    def backward(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=device(), dtype=torch.float64)
        for micro, part in share(batch, self.workload, 0, 1):
            with loss_parallel():
                loss = self.model(*micro) * part
                loss.backward()
            total += loss.detach().to_local()
        return total

    def update(self) -> None:
        for parameter in self.weights.values():  # sums over ranks before master weights widen the gradients to be sent
            gradient = parameter.grad
            if isinstance(parameter, DTensor) and gradient.placements != parameter.placements:
                parameter.grad = gradient.redistribute(placements=parameter.placements)
        if self.workload.max_grad_norm:
            groups = by_mesh(p.grad for p in self.weights.values())
            norm = torch.stack([whole(get_total_norm(group)) for group in groups]).norm()
            for gradients in groups:
                clip(gradients, self.workload.max_grad_norm, norm)
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: whole(p.grad).cpu() for name, p in self.weights.items()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: whole(p.detach()).cpu() for name, p in zip(self.weights, self.optimizer.masters, strict=True)}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
