"""A pipeline's stage of tensor-parallel layers: the tensor-parallel decoder, cut down to some of its layers."""

from typing import Any

from torch import Tensor, nn

from harness.spec import ModelConfig
from impls.parallelism.expert_parallel.reference import ParallelExperts
from impls.parallelism.sequence_parallel.operators import columns, gather, scatter
from impls.parallelism.sequence_parallel.reference import SequenceParallelDecoder
from impls.parallelism.tensor_parallel.operators import Group
from impls.parallelism.tensor_parallel.reference import ParallelDecoder


class TensorStage(ParallelDecoder):
    """This rank's part of a stage's layers, with what :class:`impls.parallelism.pipeline_parallel.stage.Stage` has.
    ``length`` of the sequences; ``decoder`` is what the decoder is made of besides."""

    def __init__(self, config: ModelConfig, layers: range, first: bool, last: bool, length: int, *decoder: Any) -> None:
        super().__init__(config, *decoder)
        self.first, self.last, self.length = first, last, length
        self.later: list[Any] = []  # no backward pass is split
        body = self.model
        body.layers = nn.ModuleDict({str(index): body.layers[index] for index in layers})
        if not first:
            del body.embed_tokens
        if not last:
            del body.norm, self.lm_head

    def feed_forward(self, x: Tensor, part: nn.Module) -> Tensor:
        return part(x) if isinstance(part, ParallelExperts) else super().feed_forward(x, part)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Token ids [b, s] or activations in; activations out, or of the last stage the mean cross-entropy."""
        x = self.embed(x) if self.first else x
        x = self.blocks(x, self.model.layers.values(), self.length)
        return x if labels is None else self.loss(x, labels)

    def message(self, inputs: Tensor) -> tuple[int, ...]:
        return (*inputs.shape, self.config.hidden_size)


class SequenceStage(TensorStage, SequenceParallelDecoder):
    def mlp(self, y: Tensor, part: nn.Module, s: int) -> Tensor:
        """Experts get whole sequences, as every block does: which of them a token goes to depends on it alone."""
        if isinstance(part, ParallelExperts):
            return scatter(part(gather(y, self.group, s)), self.group)
        return super().mlp(y, part, s)

    def message(self, inputs: Tensor) -> tuple[int, ...]:
        """Each rank passes on its part of the sequence."""
        b, s = inputs.shape
        return -(-s // self.group.size()), b, self.config.hidden_size


def parallel_stage(
    config: ModelConfig, layers: range, first: bool, last: bool, length: int, group: Group, sequence_parallel: bool
) -> TensorStage:
    """Of a rank of ``group``, along tp, that has ``length`` positions of each sequence."""
    if sequence_parallel:
        return SequenceStage(config, layers, first, last, length, group, columns)
    return TensorStage(config, layers, first, last, length, group)
