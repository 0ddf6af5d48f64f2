"""DeepSpeed's own activation checkpointing: plain and on the host in its engine, partitioned over the ranks of its
AutoTP."""

import deepspeed
import torch
from deepspeed.utils import groups

from harness.spec import Topology, Unsupported, Workload
from impls.acceleration.activation_checkpointing.cuts import segments
from impls.acceleration.activation_checkpointing.segmented import segmented
from impls.common.mesh import device
from impls.engines.deepspeed.engine import DataParallel
from impls.engines.deepspeed.tensor_parallel import TensorParallel


def build(workload: Workload, topology: Topology, each: int | str = 0, on_host: bool = False) -> DataParallel:
    if topology.tp > 1:
        raise Unsupported("with AutoTP it is the engine deepspeed_partitioned")
    if on_host and device().type == "cpu":
        raise Unsupported(
            "after its copy to the host DeepSpeed empties a segment's input, and on a CPU the copy is the input itself"
        )
    trainer = DataParallel(workload, topology)
    deepspeed.checkpointing.configure(None, partition_activations=False, checkpoint_in_cpu=on_host)
    _cut(trainer, each)
    return trainer


def build_partitioned(workload: Workload, topology: Topology, each: int | str = 0) -> TensorParallel:
    if topology.tp == 1:
        raise Unsupported("it partitions activations over tensor-parallel ranks, of which there is one")
    trainer = TensorParallel(workload, topology)
    deepspeed.checkpointing.configure(groups, partition_activations=True, checkpoint_in_cpu=False)
    _cut(trainer, each)
    return trainer


def _cut(trainer: DataParallel | TensorParallel, each: int | str) -> None:
    torch.manual_seed(trainer.workload.seed)  # every variant drops the same elements
    trainer.configuration = f"{getattr(trainer, 'configuration', '')}; deepspeed.checkpointing.checkpoint"
    cut = segments(trainer.workload.model.num_hidden_layers, each)
    segmented(trainer.engine.module.model, cut, deepspeed.checkpointing.checkpoint)
