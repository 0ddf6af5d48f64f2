"""PyTorch's DTensor: tensor parallelism's plan with ``Shard(1)``, the sequence of [b, s, h], between the blocks.

It saves gathered tensors for the gradients of the weights: the technique's naive form.
"""

import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
)

from harness.spec import Topology, Unsupported, Workload
from impls.engines.torch.tensor_parallel import PLAN, TensorParallel

EVEN_BEFORE = "2.13"  # views of a part that is not contiguous fail in linear

# DTensors are used between the blocks: for a plain part, DTensor assumes that all ranks have equal parts.
_OUT = RowwiseParallel(output_layouts=Shard(1), use_local_output=False)
SEQUENCE_PLAN = PLAN | {
    "model.embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=False),
    "model.layers.*.input_layernorm": SequenceParallel(),
    "model.layers.*.self_attn": PrepareModuleInput(
        input_layouts=(Shard(1), None, None), desired_input_layouts=(Replicate(), None, None)
    ),
    "model.layers.*.self_attn.o_proj": _OUT,
    "model.layers.*.post_attention_layernorm": SequenceParallel(),
    "model.layers.*.mlp": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate()),
    "model.layers.*.mlp.down_proj": _OUT,
    "model.norm": SequenceParallel(),
    "lm_head": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
}


def build(workload: Workload, topology: Topology, gather_again: bool = True) -> TensorParallel:
    if gather_again:
        raise Unsupported("DTensor saves its products' gathered inputs: it is the variant sp_kept")
    if workload.sequence_length % topology.tp and torch.__version__ < EVEN_BEFORE:
        raise Unsupported(f"DTensor cannot multiply parts of unequal length before PyTorch {EVEN_BEFORE}")
    return TensorParallel(workload, topology, SEQUENCE_PLAN)
