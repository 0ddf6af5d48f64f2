"""ZeRO: data parallelism without redundant states (Rajbhandari et al. 2020, §5).

Every rank of a group owns 1/N of each unit (in stage 3 an attention or MLP block, the head, the rest; below it any run
of parameters), flat, padded:

    unit    [ w0 | w1 | w2 | pad ]  =  shard 0 ‖ shard 1 ‖ … ‖ shard N−1          each of ⌈Ψ_unit/N⌉ elements

    stage   each rank keeps (bytes a parameter, AdamW in mixed precision)     collectives a step, elements sent
    1 Pos       weights 2, gradients 2, (master, momentum, variance) 12/N    reduce-scatter Ψ, all-gather Ψ
    2 Pos+g     weights 2, (gradients 2 + states 12)/N                       the same
    3 Pos+g+p   16/N                                                          all-gather 2Ψ, reduce-scatter Ψ

In stage 3 weights are gathered just before a unit's forward and backward pass, one unit ahead, and released after it.

    forward    gather 0 ┌ gather 1 · compute 0 ┐┌ gather 2 · compute 1 ┐ …      backward    from the last to the first
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Batch, Topology, Workload
from impls.common.clipping import clip_by_global_norm
from impls.common.collectives import free
from impls.common.optimizer import optimizer
from impls.common.step import accumulate
from impls.common.weights import build_model
from impls.parallelism.zero.unit import Reduction, Unit, owners, padding, step, whole


class Zero:
    """One rank's view of a model whose states are partitioned by ``stage`` over a group, by default of all ranks."""

    def __init__(
        self,
        workload: Workload,
        stage: int,
        group: dist.ProcessGroup | None = None,
        make: Callable[..., Unit] = Unit,
    ) -> None:
        self.workload, self.stage, self.rank, self.ranks = workload, stage, dist.get_rank(), dist.get_world_size()
        self.group = group or dist.group.WORLD
        self.model = build_model(workload)
        owned = owners(self.model, stage, self.group.size())
        self.units = [make(parameters, stage, self.group) for _, parameters in owned]
        self.optimizer = optimizer([unit.master for unit in self.units], workload)
        self.reducing: tuple[Unit, Reduction] | None = None  # one at a time: each holds a gradient
        self.last = False  # the micro-batch after which stage 1 reduces
        for index, (module, _) in enumerate(owned):
            self._reduce_when_ready(index)
            if stage == 3:
                self._gather_around(module, index)

    def _gather_around(self, module: nn.Module, index: int) -> None:
        """Weights are there for this unit's forward pass, and on their way for the next; there for its backward."""
        unit, following = self.units[index], self.units[min(index + 1, len(self.units) - 1)]

        def before(*prefetch: Unit) -> None:
            for wanted in (unit, *prefetch):
                wanted.gather()  # a no-op where the weights are there already
            unit.wait()

        module.register_forward_pre_hook(lambda *_: before(following))
        module.register_forward_hook(lambda *_: unit.release())
        module.register_full_backward_pre_hook(lambda *_: before())

    def _reduce_when_ready(self, index: int) -> None:
        unit, missing = self.units[index], len(self.units[index].parameters)
        # At the top all activations are there still: what comes next comes when it is needed.
        ahead = 0 < index < len(self.units) - 1

        def arrived(_: nn.Parameter) -> None:
            nonlocal missing
            missing -= 1
            if missing:
                return
            missing = len(unit.parameters)
            self._finish()  # the reduction that went on under this unit's backward pass
            unit.collect()
            if self.stage > 1:
                for parameter in unit.parameters:
                    parameter.grad = None
            if self.stage == 3:
                unit.release()
                if ahead:
                    self.units[index - 1].gather()
            if self.stage > 1 or self.last:
                self.reducing = unit, unit.reduce()

        for parameter in unit.parameters:
            parameter.register_post_accumulate_grad_hook(arrived)

    def _finish(self) -> None:
        """Takes the result of the running reduction and frees its buffer. At the same points on every rank: what
        follows may be a collective of another group."""
        if self.reducing is not None:
            (unit, (work, sent, part)), self.reducing = self.reducing, None
            work.wait()
            if part.untyped_storage().data_ptr() != sent.untyped_storage().data_ptr():
                free(sent)
            self._received(unit, part)

    def _received(self, unit: Unit, part: Tensor) -> None:
        unit.add(part)

    def backward(self, batch: Batch) -> Tensor:
        return accumulate(self.model, batch, self.workload, self.rank, self.ranks, 1 / self.ranks, self._reducing)

    @contextlib.contextmanager
    def _reducing(self, last: bool) -> Iterator[None]:
        self.last = last
        yield
        self._finish()

    @torch.no_grad()
    def update(self) -> None:
        # Shards are distinct; what is held in other groups is held there again.
        mine = [unit.gradient for unit in self.units if unit.gradient is not None]
        clip_by_global_norm({(self.group,): mine}, self.workload.max_grad_norm)
        del mine  # the weights' way needs the room
        step(self.units, self.optimizer)

    def _named(self, shards: list[Tensor]) -> Mapping[str, Tensor]:
        found = whole(self.units, shards)
        return {name: found[parameter].cpu() for name, parameter in self.model.named_parameters()}

    def gradients(self) -> Mapping[str, Tensor]:
        return self._named([unit.gradient for unit in self.units if unit.gradient is not None])

    def parameters(self) -> Mapping[str, Tensor]:
        return self._named([unit.master.detach() for unit in self.units])

    def padding(self) -> int:
        """Elements that fill the units up to a multiple of the ranks."""
        return padding(self.units)


def build(workload: Workload, topology: Topology, stage: int = 3) -> Zero:
    # Of one rank the masters are the weights, unless those are narrower: nothing is to be gathered.
    return Zero(workload, stage if topology.dp > 1 or workload.element_size < 4 else min(stage, 2))
