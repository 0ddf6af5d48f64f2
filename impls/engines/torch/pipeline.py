"""torch.distributed.pipelining: one of its schedules on its PipelineStages. It leaves some work to its user, which is
done here: summing a tied embedding's gradients, averaging over data-parallel ranks unless DDP does, clipping,
stepping."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, schedules
from torch.nn.parallel import DistributedDataParallel

from harness.spec import Batch, Spans, Topology, Workload
from impls.common.clipping import global_norm
from impls.common.cuts import EMBEDDING, HEAD, split
from impls.common.decoder import wide
from impls.common.mesh import cut, device, gather, lines, mesh, placed
from impls.common.optimizer import MasterWeights, clip
from impls.common.routers import without_router_losses
from impls.common.stages import Stage
from impls.common.sums import mean_flat
from impls.common.watch import watched
from impls.common.weights import TORCH_DTYPES, initial


class Pipelining:
    """``kind`` is one of PyTorch's schedules; ``rank_of`` gives the rank that holds each stage. ``replicated``: each
    stage is wrapped in DistributedDataParallel, which averages its gradients during the last backward pass."""

    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        kind: Callable[..., Any],
        rank_of: Sequence[int],
        replicated: bool = False,
    ) -> None:
        without_router_losses(
            workload.model, "PyTorch's pipelines have one loss, the last stage's; routers have their own"
        )
        self.workload, self.topology, self.places = workload, topology, mesh(topology)
        self.replicated = replicated
        self.pp, self.dp = self.places.get_group("pp"), self.places.get_group("dp")
        rank, last = self.pp.rank(), len(rank_of) - 1
        layers = split(workload.model.num_hidden_layers, len(rank_of))
        self.stages = {
            index: Stage(workload.model, layers[index], index == 0, index == last)
            for index, holder in enumerate(rank_of)
            if holder == rank
        }
        self.weights: dict[str, nn.Parameter] = {}
        for stage in self.stages.values():
            stage.to(device(), TORCH_DTYPES[workload.dtype])
            self._register(stage)
        with torch.no_grad():
            for name, full in initial(workload):
                if name in self.weights:
                    self.weights[name].copy_(full)
        # A tied embedding is on the first and last stages, and counts on the first of them.
        self.first, self.last = rank_of[0] == rank, rank_of[last] == rank
        self.tied = workload.model.tie_word_embeddings and rank_of[0] != rank_of[last] and (self.first or self.last)
        ends = [[line[rank_of[0]], line[rank_of[last]]] for line in lines(self.places, "pp")]
        self.ends = dist.new_subgroups_by_enumeration(ends)[0] if rank_of[0] != rank_of[last] else self.pp
        self.optimizer = MasterWeights(self.weights.values(), workload)
        parts = [self._part(module, index, len(rank_of)) for index, module in self.stages.items()]
        self.spans: Spans | None = None
        for part in parts:
            self._watch(part)
        several = isinstance(kind, type) and issubclass(kind, schedules.PipelineScheduleMulti)
        self.scale = 0.0  # the weight of a token's loss
        given = parts if several else parts[0]
        self.schedule = kind(given, workload.micro_batches, loss_fn=self._loss, scale_grads=False)

    def _register(self, stage: Stage) -> None:
        """A stage's parameters by their canonical names; if a rank has the first and last stages, they share the
        embedding."""
        for name, parameter in list(stage.named_parameters()):
            if name == HEAD and self.workload.model.tie_word_embeddings:
                name = EMBEDDING
            if name in self.weights:
                (stage.lm_head if stage.last else stage.model.embed_tokens).weight = self.weights[name]
            else:
                self.weights[name] = parameter

    def _part(self, stage: Stage, index: int, stages: int) -> PipelineStage:
        if not self.replicated:
            return PipelineStage(stage, index, stages, device(), group=self.pp)
        devices = [device()] if device().type == "cuda" else None
        # Without the view, DDP keeps every gradient twice.
        module = DistributedDataParallel(stage, devices, process_group=self.dp, gradient_as_bucket_view=True)
        # Without shapes, PyTorch 2.13 infers them by a forward pass, after which DDP waits for gradients: it reduces
        # those of the first micro-batch already, counts each parameter twice, and fails in the second step.
        work, model = self.workload, self.workload.model
        rows = work.batch_size // self.topology.dp // work.micro_batches
        tokens = torch.empty(rows, work.sequence_length, dtype=torch.int64, device="meta")  # [b, s]
        x = torch.empty(*tokens.shape, model.hidden_size, dtype=TORCH_DTYPES[work.dtype], device="meta")  # [b, s, h]
        logits = wide(torch.empty(*tokens.shape, model.vocab_size, dtype=x.dtype, device="meta"))  # [b, s, V]
        given, found = tokens if stage.first else x.requires_grad_(), (logits if stage.last else x).requires_grad_()
        return PipelineStage(module, index, stages, device(), given, found, group=self.pp)

    def _watch(self, part: PipelineStage) -> None:
        kinds = {"forward_one_chunk": "F", "backward_one_chunk": "B", "backward_weight_one_chunk": "W"}
        for name, kind in kinds.items():  # the function's first argument is the micro-batch
            action = partial(lambda kind, micro, *_: (kind, part.stage_index, micro), kind)
            setattr(part, name, watched(self, getattr(part, name), action))

    def record(self, spans: Spans | None) -> None:
        self.spans = spans

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") * self.scale

    def backward(self, batch: Batch) -> Tensor:
        mine = cut(batch, self.workload, self.places.get_local_rank("dp"), self.topology.dp)
        inputs, labels = placed(Batch(*(torch.cat(parts) for parts in zip(*mine, strict=True))))
        self.scale = self.topology.dp / int((batch.labels >= 0).sum())
        losses: list[Tensor] = []
        self.schedule.step(*([inputs] if self.first else []), target=labels if self.last else None, losses=losses)
        total = sum((loss.detach().double() for loss in losses), torch.zeros((), device=device()).double())
        dist.all_reduce(total, group=self.pp)
        gradients = [_gradient(parameter) for parameter in self.weights.values()]
        if self.tied:
            dist.all_reduce(_gradient(self.weights[EMBEDDING]), group=self.ends)
        if not self.replicated:
            mean_flat(gradients, self.dp)
        return total

    def update(self) -> None:
        if self.workload.max_grad_norm:
            elsewhere = self.tied and not self.first
            counted = [_gradient(p) for name, p in self.weights.items() if not (elsewhere and name == EMBEDDING)]
            norm = global_norm({(self.pp,): counted})
            clip([_gradient(p) for p in self.weights.values()], self.workload.max_grad_norm, norm)
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return gather({name: _gradient(p) for name, p in self.weights.items()}, self.pp)

    def parameters(self) -> Mapping[str, Tensor]:
        return gather(dict(zip(self.weights, self.optimizer.masters, strict=True)), self.pp)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
