"""The references with exactly one thing broken. Each is built in fresh ranks, so a module may be altered for good."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import logsigmoid

from harness.spec import Batch, Function, Topology, Trainer, Workload
from impls.acceleration.flash_attention import reference as flash_attention
from impls.acceleration.gradient_clipping import reference as gradient_clipping
from impls.acceleration.latent_attention import reference as latent_attention
from impls.acceleration.latent_attention.sizes import sizes as latent_sizes
from impls.common.step import accumulate
from impls.parallelism.context_parallel import reference as context_parallel
from impls.parallelism.context_parallel import ring
from impls.parallelism.data_parallel import reference as data_parallel
from impls.parallelism.expert_parallel import reference as expert_parallel
from impls.parallelism.gradient_accumulation import reference as gradient_accumulation
from impls.parallelism.hybrid_3d import reference as hybrid_3d
from impls.parallelism.hybrid_shard import reference as hybrid_shard
from impls.parallelism.overlap import domino
from impls.parallelism.overlap import reference as overlap
from impls.parallelism.overlap.wire import Flight, Wire
from impls.parallelism.pipeline_parallel import reference as pipeline_parallel
from impls.parallelism.sequence_parallel import reference as sequence_parallel
from impls.parallelism.tensor_parallel import reference as tensor_parallel
from impls.parallelism.zero import reference as zero
from impls.parallelism.zero_offload import reference as zero_offload
from impls.parallelism.zero_plus_plus import reference as zero_plus_plus
from impls.posttraining.preference import reference as preference


def not_averaged(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Gradients are summed over ranks, and that is all."""

    def summed(*arguments: Any, scale: float, **keywords: Any) -> Tensor:
        return accumulate(*arguments, **keywords)

    data_parallel.accumulate = summed
    return data_parallel.build(workload, topology, **variant)


def a_rank_left_out(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """One parameter's gradient is each rank's own, of the right size but never reduced."""
    trainer = data_parallel.build(workload, topology, **variant)
    parameter = trainer.model.get_parameter("model.layers.0.self_attn.q_norm.weight")
    backward, own = trainer.backward, Tensor()

    def keep(_: Tensor) -> None:
        nonlocal own
        own = parameter.grad * dist.get_world_size()

    def unreduced(batch: Batch) -> Tensor:
        loss = backward(batch)
        parameter.grad.copy_(own)
        return loss

    parameter.register_post_accumulate_grad_hook(keep)
    trainer.backward = unreduced
    return trainer


def tokens_of_its_own_rank(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each rank normalises by its own tokens, as if all ranks had as many."""

    def weights(labels: list[Tensor]) -> Tensor:
        counts = torch.stack([(part >= 0).sum() for part in labels])
        return counts.double() / counts.sum() / dist.get_world_size()

    gradient_accumulation.token_weights = weights
    return gradient_accumulation.build(workload, topology, **variant)


def larger_rate(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The learning rate is two percent too large."""
    return zero.build(workload.with_(lr=workload.lr * 1.02), topology, **variant)


def clipped(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Gradients are clipped, which nobody asked for."""
    return data_parallel.build(workload.with_(max_grad_norm=0.5), topology, **variant)


def a_shard_off_by_one(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The last rank's shard of the last layer's gradient begins one element too early."""
    trainer = zero.build(workload, topology, **variant)
    unit = trainer.stage.partitions[-2]  # its MLP; behind it comes the head
    add = unit.add
    if dist.get_rank() == dist.get_world_size() - 1:
        unit.add = lambda received: add(received.roll(1))
    return trainer


def no_sum_over_heads(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The gains of the query and key norms see this rank's heads only: an all-reduce is missing."""
    tensor_parallel.sum_flat = lambda tensors, group: None
    return tensor_parallel.build(workload, topology, **variant)


def replicas_counted_on_every_rank(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The norm that clips is summed over all that each rank holds: what is replicated counts once a rank."""
    clip = tensor_parallel.clip_by_global_norm

    def clip_by_everything(gradients: Mapping[tuple[Any, ...], list[Tensor]], max_norm: float) -> None:
        groups = max(gradients, key=len)
        clip({groups: [tensor for mine in gradients.values() for tensor in mine]}, max_norm)

    tensor_parallel.clip_by_global_norm = clip_by_everything
    return gradient_clipping.build(workload, topology, **variant)


def no_softmax_scale(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """softmax(QKᵀ) V, without 1/√d."""
    attention = flash_attention.build(workload, topology, **variant)

    def unscaled(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return attention({**inputs, "query": inputs["query"] * workload.model.head_dim**0.5})

    return unscaled


def wrong_sign(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The loss prefers what was rejected; the rewards are right."""

    def dpo(log_probs: Tensor, reference_log_probs: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        chosen, rejected = (beta * (log_probs - reference_log_probs)).chunk(2)
        return -logsigmoid(rejected - chosen).mean(), chosen, rejected

    preference.dpo = dpo
    return preference.build(workload, topology, **variant)


def no_sum_over_sequence(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The gains of the layers' norms see this rank's part of the sequence only; those of the heads are summed."""
    sequence_parallel.SequenceParallel.summed = ("q_norm.weight", "k_norm.weight")
    return sequence_parallel.build(workload, topology, **variant)


def gradients_that_never_cross(workload: Workload, topology: Topology, group: int, **variant: Any) -> Trainer:
    """Two groups of one rank each, and no second hop between them."""
    hybrid_shard.SecondHopOnce.reduce = lambda stage: stage.inside.reduce()
    return hybrid_shard.build(workload, topology, group // 2, **variant)


def a_write_left_behind(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The last piece's new states never reach the file: each step begins with the first ones."""
    trainer = zero_offload.build(workload, topology, **variant)
    store, (last, _) = trainer.states.store, trainer.states.extents[-1]
    write = store.write
    store.write = lambda offset, data: store.read(offset, data) if offset == last else write(offset, data)
    return trainer


def no_log_sum_exp(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The ring adds the softmaxes of its blocks, each of which has weights that sum to 1."""

    def added(output: Tensor, logsumexp: Tensor, o_b: Tensor, l_b: Tensor) -> None:
        output.add_(o_b)
        torch.logaddexp(logsumexp, l_b, out=logsumexp)

    ring.merge = added
    return context_parallel.build(workload, topology, **variant)


def no_sum_over_replicas(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Each copy of an expert keeps the gradient of the tokens that came to it alone."""
    layer = expert_parallel.build(workload, topology, **variant)
    layer.spread.replicas = layer.spread.ep  # without expert parallelism that is this rank
    return layer


def a_rotary_key_of_its_own_heads(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The one key of all heads learns from this rank's alone; the latents beside it from all."""
    shared = latent_attention.copy

    def unsummed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
        rotary = latent_sizes(workload.model).rotary
        return torch.cat([shared(x[..., :-rotary], group), x[..., -rotary:]], -1)

    latent_attention.copy = unsummed
    return latent_attention.build(workload, topology, **variant)


def a_stale_partition(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The secondary partition outlives the update: later steps use the first step's weights."""
    zero_plus_plus.Secondary.expire = lambda secondary: None
    return zero_plus_plus.build(workload, topology, **variant)


def a_tie_that_is_not_summed(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each end of the pipeline keeps its own gradient of the tied embedding."""
    trainer = pipeline_parallel.build(workload, topology, **variant)
    trainer.part.shared = {}
    return trainer


def gains_of_one_part(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The gain of the keys' norm keeps the gradient of this rank's heads."""
    trainer = hybrid_3d.build(workload, topology, **variant)
    trainer.summed = ("q_norm.weight",)
    return trainer


def experts_that_count_their_ranks(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Of an expert the gradients of all tokens of its group are taken for one rank's, as a dense weight's are."""
    trainer = hybrid_3d.build(workload, topology, **variant)
    for kind, states in trainer.states.of.items():
        states.ranks = kind.replicas.size()
    return trainer


def positions_of_the_first_rank(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each rank takes its part of a sequence for its beginning."""
    trainer = hybrid_3d.build(workload, topology, **variant)
    for stage in trainer.stages.values():
        stage.positions = None
    return trainer


def no_stashed_weights(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Updates are made in place: a backward pass finds the newest weights, not those of its forward pass."""
    trainer = pipeline_parallel.build(workload, topology, **variant)
    for versions in trainer.versions.values():
        versions.room = lambda versions=versions: versions.held[versions.newest]
    return trainer


def a_half_that_is_not_summed(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Backward, the second half's input gradients are each rank's own: what is waited for was never issued."""

    class Alone(Wire):
        def sum(self, x: Tensor) -> Flight:
            return Flight(self, lambda: (x, []))

    backward = domino.Half.backward

    def alone(half: domino.Half, stage: int, scale: Tensor) -> None:
        if half.index:
            half.wire = Alone(half.wire.group)
        backward(half, stage, scale)

    domino.Half.backward = alone
    return overlap.build(workload, topology, **variant)
