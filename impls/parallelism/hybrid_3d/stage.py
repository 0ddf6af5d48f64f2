"""What each axis does to a pipeline's stage.

    pp    a stage has some of the layers                          pipeline_parallel: Stage
    tp    a t-th of every matrix                                  tensor_parallel, sequence_parallel: their decoders
    cp    a c-th of every sequence, laid out zig-zag; attention   context_parallel: RingAttention
          goes round a ring, RoPE is told the positions
    ep    E/ep of the experts in place of each layer's MLP        expert_parallel: ParallelExperts

    dp4 ep2     rank 0, 2     experts 0 … E/2 − 1       replicas of each other
                rank 1, 3     experts E/2 … E − 1       tokens go between 0 and 1, and between 2 and 3

Where 2·cp does not divide the length, what is padded comes last, where no other query sees it, and has no label.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.functional import pad

from harness.spec import Batch, ModelConfig, MoeConfig, Topology, Unsupported, Workload
from impls.common.data import IGNORED
from impls.common.decoder import Attention
from impls.common.features import without
from impls.common.mesh import device, lines
from impls.parallelism.context_parallel.layouts import blocks, padded, runs
from impls.parallelism.context_parallel.ring import Ring, RingAttention
from impls.parallelism.expert_parallel.reference import ParallelExperts
from impls.parallelism.expert_parallel.spread import part_of, whole_of
from impls.parallelism.sequence_parallel.operators import gather, scatter
from impls.parallelism.sequence_parallel.reference import SequenceParallelDecoder
from impls.parallelism.tensor_parallel.operators import Group
from impls.parallelism.tensor_parallel.reference import ParallelDecoder

LAYOUT = "zigzag"
ROUTER = "mlp.gate.weight"  # on every rank


class TensorStage(ParallelDecoder):
    """This rank's part of a stage's layers, with what :class:`impls.parallelism.pipeline_parallel.stage.Stage` has.
    ``length`` of the sequences; ``decoder`` is what the decoder is made of besides."""

    def __init__(self, config: ModelConfig, layers: range, first: bool, last: bool, length: int, *decoder: Any) -> None:
        super().__init__(config, *decoder)
        self.first, self.last, self.length = first, last, length
        self.later: list[Any] = []  # what split backward passes would leave
        body = self.model
        body.layers = nn.ModuleDict({str(index): body.layers[index] for index in layers})
        if not first:
            del body.embed_tokens
        if not last:
            del body.norm, self.lm_head

    def defer(self) -> None:
        raise Unsupported("backward passes of tensor-parallel products are not split here")

    def feed_forward(self, x: Tensor, part: nn.Module) -> Tensor:
        return part(x) if isinstance(part, ParallelExperts) else super().feed_forward(x, part)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Token ids [b, s] or activations in; activations out, or of the last stage the mean cross-entropy."""
        x = self.embed(x) if self.first else x
        x = self.blocks(x, self.model.layers.values(), self.length)
        return self.loss(x, labels) if self.last else x

    def parts(self, batch: Batch) -> list[Callable[[Tensor], Tensor]]:
        return [partial(self, labels=batch.labels)]

    def message(self, inputs: Tensor) -> tuple[int, ...]:
        return (*inputs.shape, self.config.hidden_size)  # [b, s, h]


class SequenceStage(TensorStage, SequenceParallelDecoder):
    """The same with sequence parallelism: between its blocks a rank has a t-th of the sequence."""

    def mlp(self, y: Tensor, part: nn.Module, s: int) -> Tensor:
        """Experts get whole sequences, as every block does: which of them a token goes to depends on it alone."""
        if isinstance(part, ParallelExperts):
            return scatter(part(gather(y, self.group, s)), self.group)
        return super().mlp(y, part, s)

    def message(self, inputs: Tensor) -> tuple[int, ...]:
        b, s = inputs.shape
        return -(-s // self.group.size()), b, self.config.hidden_size  # [⌈s/t⌉, b, h]


def part_length(workload: Workload, cp: int) -> int:
    """Positions of each sequence on a rank."""
    return padded(workload.sequence_length, LAYOUT, cp) // cp if cp > 1 else workload.sequence_length


class Context:
    """The axis cp. ``positions`` [s/c] of this rank."""

    def __init__(self, workload: Workload, cp: int, rank: int) -> None:
        self.whole = part_length(workload, cp) * cp
        every = torch.arange(self.whole, device="cpu")  # [s]
        self.positions = torch.cat([every[run] for run in runs(LAYOUT, rank, cp, self.whole)])  # [s/c]

    def part(self, micro: Batch) -> Batch:
        """This rank's positions [b, s/c] of a micro-batch [b, s]; both on the host."""
        more = (0, self.whole - micro.inputs.shape[1])
        inputs, labels = pad(micro.inputs, more), pad(micro.labels, more, value=IGNORED)  # [b, s] each
        return Batch(*(tokens[:, self.positions] for tokens in (inputs, labels)))

    def enter(self, stage: nn.Module, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """Tells a stage its positions, and its layers the attention over all ranks'."""
        stage.positions = self.positions.to(device())
        for layer in stage.modules():
            if isinstance(layer, Attention):
                layer.attend = attend


def ring(workload: Workload, group: Group) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention over the positions of all ranks of a group."""
    without(workload, "attention that goes round a ring", "sliding_window")
    rank, size = group.rank(), group.size()
    plan = [blocks(LAYOUT, rank, source, (part_length(workload, size),)) for source in range(size)]
    return partial(RingAttention.apply, Ring(group, rank, size, plan))


class Experts:
    """The axis ep: the groups in which experts lie, and in which they are exchanged. ``sums``: a layer adds up over tp
    what its ranks' parts of the experts give; with sequence parallelism the stage does."""

    def __init__(self, places: DeviceMesh, topology: Topology, sums: bool = True) -> None:
        ep, cp = topology.ep, topology.cp
        batch = lines(places, "dp", "cp")  # ranks that together have all tokens
        neighbours = [line[i : i + ep] for line in lines(places, "dp") for i in range(0, topology.dp, ep)]
        replicas = [
            [line[d * cp + c] for d in range(place, topology.dp, ep) for c in range(cp)]
            for line in batch
            for place in range(ep)
        ]
        self.ep, self.replicas, self.batch = (
            dist.new_subgroups_by_enumeration(ranks)[0] for ranks in (neighbours, replicas, batch)
        )
        self.tp, self.cp, self.sums = places.get_group("tp"), places.get_group("cp"), sums

    def enter(self, stage: nn.Module, config: MoeConfig) -> None:
        """Gives a stage's layers this rank's experts."""
        counted = self.batch if config.global_aux else self.cp
        for layer in stage.model.layers.values():
            layer.mlp = ParallelExperts(config, self.ep, self.tp, counted, self.sums)

    def part(self, name: str, full: Tensor) -> Tensor:
        return part_of(weights_of(name), full, self.ep, self.tp)

    def whole(self, name: str, part: Tensor) -> Tensor:
        return whole_of(weights_of(name), part, self.ep, self.tp)


def weights_of(name: str) -> str:
    """gate_up or down."""
    return name.rpartition(".")[2].removesuffix("_proj")
