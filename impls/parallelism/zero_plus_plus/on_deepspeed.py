"""DeepSpeed's ZeRO++. Its nodes are the groups: on a CPU a node is LOCAL_SIZE ranks, on CUDA the visible GPUs."""

import os

import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder import QuantizerBuilder

from harness.spec import Topology, Unsupported, Workload
from impls.common.mesh import groups
from impls.engines.deepspeed.zero import Zero


def build(
    workload: Workload, topology: Topology, group: int, weight_bits: int, gradient_bits: int, hierarchical: bool
) -> Zero:
    groups(topology, group)  # or it is unsupported
    os.environ["LOCAL_SIZE"] = str(group)
    one_node = dist.get_world_size() // get_accelerator().device_count() <= 1  # DeepSpeed's own test
    if weight_bits or (gradient_bits and not one_node):
        try:
            QuantizerBuilder().load()
        except ValueError as error:
            raise Unsupported(f"DeepSpeed's quantisation kernels, tried here: {error}") from error
    options = {
        "zero_quantized_weights": bool(weight_bits),
        "zero_quantized_gradients": bool(gradient_bits),
        "zero_hpz_partition_size": group if hierarchical else 1,
    }
    trainer = Zero(workload, topology, 3, options)
    if gradient_bits and one_node:
        trainer.fallback = "zero_quantized_gradients has no effect on one node: a reduce-scatter in full precision ran"
    return trainer
