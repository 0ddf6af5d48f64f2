"""ZeRO: data parallelism without redundant states (Rajbhandari et al. 2020, §5).

Every rank owns 1/N of each unit (a decoder layer; the rest of the model is one more). A unit is flat and padded to N:

    unit    [ w0 | w1 | w2 | pad ]  =  shard 0 ‖ shard 1 ‖ … ‖ shard N−1          each of ⌈Ψ_unit/N⌉ elements

    stage   each rank keeps (bytes a parameter, AdamW in mixed precision)     collectives a step, elements sent
    1 Pos       weights 2, gradients 2, (master, momentum, variance) 12/N    reduce-scatter Ψ, all-gather Ψ
    2 Pos+g     weights 2, (gradients 2 + states 12)/N                       the same
    3 Pos+g+p   16/N                                                          all-gather 2Ψ, reduce-scatter Ψ

In stage 3 a unit's weights are gathered just before its forward and its backward pass, one unit ahead of the
computation, and released after it; so are, from stage 2 on, its gradients once they are reduced.

    forward    gather 1 ┌ compute 0 ┐┌ gather 2 · compute 1 ┐ …        backward    the same from the last to the first
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Batch, Topology, Workload
from impls.models.flat import distinct, flatten, views
from impls.models.mesh import share
from impls.models.optimizer import clip, optimizer
from impls.models.weights import build_model


class Unit:
    """Some parameters, flat; this rank's shard of them, of their gradient and of the float32 master."""

    def __init__(self, parameters: list[nn.Parameter], stage: int, rank: int, ranks: int) -> None:
        self.parameters, self.stage = parameters, stage
        self.full = flatten(parameters, multiple=ranks)
        size = self.full.numel() // ranks
        self.mine = slice(rank * size, (rank + 1) * size)
        self.shard = self.full[self.mine].clone() if stage == 3 else self.full[self.mine]
        self.master = self.shard.float() if self.shard.dtype.itemsize < 4 else self.shard
        self.bytes = self.full.nbytes
        self.gradient: Tensor | None = None  # [size], this rank's, summed over ranks and micro-batches
        self.work: dist.Work | None = None
        self.missing = len(parameters)
        if stage == 1:
            self.whole = torch.zeros_like(self.full)  # stage 1 keeps the whole gradient
            self.attach()
        if stage == 3:
            self.release()

    def attach(self) -> None:
        for parameter, view in zip(self.parameters, views(self.whole, self.parameters), strict=True):
            parameter.grad = view

    def gather(self) -> None:
        """Starts the all-gather of the weights, into the storage that autograd's saved tensors point at."""
        if self.work is None and not self.full.untyped_storage().size():
            self.full.untyped_storage().resize_(self.bytes)
            with torch.autograd._unsafe_preserve_version_counter(self.full):
                self.work = dist.all_gather_into_tensor(self.full, self.shard, async_op=True)

    def wait(self) -> None:
        if self.work is not None:
            self.work.wait()
            self.work = None

    def release(self) -> None:
        self.full.untyped_storage().resize_(0)

    def reduce(self) -> "tuple[dist.Work, Tensor, Tensor]":
        """Starts the reduce-scatter of the gradient; returns (handle, its input, its output)."""
        if self.stage == 1:
            send, receive = self.whole, self.whole[self.mine]
        else:
            send = self.full.new_zeros(self.bytes // self.full.itemsize)
            torch._foreach_copy_(views(send, self.parameters), [p.grad for p in self.parameters])
            for parameter in self.parameters:
                parameter.grad = None
            receive = torch.empty_like(send[self.mine])
        return dist.reduce_scatter_tensor(receive, send, async_op=True), send, receive


class Zero:
    def __init__(self, workload: Workload, stage: int) -> None:
        self.workload, self.stage = workload, stage
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.model = build_model(workload)
        layers = list(self.model.model.layers)
        inside = {p for layer in layers for p in layer.parameters()}
        rest = [p for p in distinct(self.model.parameters()) if p not in inside]
        self.units = [Unit(list(m.parameters()), stage, self.rank, self.ranks) for m in layers]
        self.root = Unit(rest, stage, self.rank, self.ranks)
        self.all = [self.root, *self.units]
        self.optimizer = optimizer([unit.master for unit in self.all], workload)
        self.reducing: list[tuple[Unit, dist.Work, Tensor, Tensor]] = []
        self.last = False  # the micro-batch after which stage 1 reduces
        for index, (layer, unit) in enumerate(zip(layers, self.units, strict=True)):
            if stage == 3:
                self._gather_around(layer, index)
            self._reduce_when_ready(unit)
        self._reduce_when_ready(self.root)

    def _gather_around(self, layer: nn.Module, index: int) -> None:
        """Weights are there for this layer, and on their way for the one that comes next."""
        unit = self.units[index]

        def need(step: int) -> None:
            unit.gather()
            if 0 <= index + step < len(self.units):
                self.units[index + step].gather()
            unit.wait()

        def done(*_: object) -> None:
            if index < len(self.units) - 1:  # the last layer's backward comes at once
                unit.release()

        layer.register_forward_pre_hook(lambda *_: need(+1))
        layer.register_forward_hook(done)
        layer.register_full_backward_pre_hook(lambda *_: need(-1))

    def _reduce_when_ready(self, unit: Unit) -> None:
        def arrived(_: Tensor) -> None:
            unit.missing -= 1
            if not unit.missing:
                unit.missing = len(unit.parameters)
                if self.stage > 1 or self.last:
                    self._finish(keep=1)  # at most two reductions' buffers at a time
                    self.reducing.append((unit, *unit.reduce()))
                if self.stage == 3:
                    unit.release()

        for parameter in unit.parameters:
            parameter.register_post_accumulate_grad_hook(arrived)

    def _finish(self, keep: int = 0) -> None:
        while len(self.reducing) > keep:
            unit, work, _, receive = self.reducing.pop(0)
            work.wait()
            unit.gradient = receive if unit.gradient is None else unit.gradient.add_(receive)

    def backward(self, batch: Batch) -> Tensor:
        micro_batches = list(share(batch, self.workload, self.rank, self.ranks))
        total = torch.zeros((), device=self.root.master.device)
        for index, micro in enumerate(micro_batches):
            self.last = index == len(micro_batches) - 1
            if self.stage == 3:
                self.root.gather()
                self.units[0].gather()
                self.root.wait()
            loss = self.model(*micro) / len(micro_batches)
            (loss / self.ranks).backward()
            total += loss.detach()
            self._finish()
        return total

    def update(self) -> None:
        self._clip()
        for unit in self.all:
            assert unit.gradient is not None
            unit.master.grad = unit.gradient.to(unit.master.dtype)
            unit.gradient = None
        self.optimizer.step()
        self.optimizer.zero_grad()
        works = []
        for unit in self.all:
            if unit.master is not unit.shard:
                with torch.no_grad():
                    unit.shard.copy_(unit.master)
            if self.stage < 3:
                works.append(dist.all_gather_into_tensor(unit.full, unit.shard, async_op=True))
            if self.stage == 1:
                unit.whole.zero_()
        for work in works:
            work.wait()

    def _clip(self) -> None:
        """Shards are distinct, so the squared norms add up over ranks."""
        if self.workload.max_grad_norm:
            mine = [unit.gradient for unit in self.all if unit.gradient is not None]
            square = torch.nn.utils.get_total_norm(mine).square()
            dist.all_reduce(square)
            clip(mine, self.workload.max_grad_norm, square.sqrt())

    def _named(self, shards: list[Tensor]) -> Mapping[str, Tensor]:
        found = {}
        for unit, shard in zip(self.all, shards, strict=True):
            whole = shard.new_empty(shard.numel() * self.ranks)
            dist.all_gather_into_tensor(whole, shard)
            found.update(zip(unit.parameters, views(whole, unit.parameters), strict=True))
        return {name: found[parameter].cpu() for name, parameter in self.model.named_parameters()}

    def gradients(self) -> Mapping[str, Tensor]:
        return self._named([unit.gradient for unit in self.all if unit.gradient is not None])

    def parameters(self) -> Mapping[str, Tensor]:
        return self._named([unit.master.detach() for unit in self.all])

    def padding(self) -> int:
        return sum(u.bytes // u.full.itemsize - sum(p.numel() for p in u.parameters) for u in self.all)


def build(workload: Workload, topology: Topology, stage: int = 3) -> Zero:
    return Zero(workload, stage)
