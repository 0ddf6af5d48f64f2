"""ZeRO-Offload (Ren et al. 2021, §3, §4) and ZeRO-Infinity (Rajbhandari et al. 2021, §5, §6): ZeRO whose states are
where memory is plenty.

A step in mixed precision is cut between device and host at the edges that carry 2-byte values only, and what costs
O(Ψ · tokens) stays on the device (Ren et al., §3.2-3.4). What is on the host is stepped there:

    device   ┌ p16 ── forward, backward ── g16 ┐        p16  weights      2Ψ        stay on the device (stage 2), or
    ─────────│─────────────────────────────────│───                                 are fetched a unit at a time (3)
    host     └ p16 ◄── float2half ── p32, m, v ◄ g16    g16  gradients    2Ψ/N      p32, m, v  12Ψ/N

    variant              weights   p32, m, v            Ψ parameters   N ranks, each owns 1/N of every unit
    offload_optimizer    device    host
    offload_params       host      host
    nvme_optimizer       device    files
    nvme_states          host      files
    nvme_params          files     files

    backward   compute unit 3 │ compute unit 2 │ …      update   step piece 0 │ step piece 1 │ …
    copies                    │ g of unit 3 ↓  │                 read piece 1 │ write piece 0, read piece 2 │ …

Naively all gradients are copied, then all states stepped, then all weights copied. Here a unit's gradient is copied
while the one below is computed, and states are stepped in pieces (Ren et al., §5.1) with their neighbours on the way.
On CPU ranks device and host are one memory: gradients and weights are handed over there, not copied.
"""

from collections.abc import Mapping
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from harness.spec import Batch, Topology, Workload
from impls.common.clipping import clip_by_global_norm
from impls.common.weights import build_model
from impls.parallelism.zero.reference import Zero
from impls.parallelism.zero.unit import owners
from impls.parallelism.zero_offload import files, host
from impls.parallelism.zero_offload.host import Rows
from impls.parallelism.zero_offload.partition import Partition
from impls.parallelism.zero_offload.pieces import cut, longest


def step(rows: Rows, gradient: Tensor, count: int, workload: Workload) -> None:
    """Step number ``count`` of the optimizer on the host, in place: ``rows`` p, m, v and ``gradient``, each [n].

        m ← β₁m + (1 − β₁)g     v ← β₂v + (1 − β₂)g²     p ← p − η (m̂ / (√v̂ + ε) + λp)

    in one vectorised pass over the memory (Ren et al., §5.1). Plain SGD has no m and v.
    """
    p, *moments = rows
    g = gradient.to(p.dtype)
    rate = {"lr": workload.lr, "weight_decay": workload.weight_decay, "maximize": False, "fused": True}
    if workload.optimizer == "sgd":
        sgd([p], [g], [None], momentum=0.0, dampening=0.0, nesterov=False, **rate)
    else:
        (m, v), (beta1, beta2) = moments, workload.betas
        before = [torch.tensor(count - 1.0)]  # the kernel counts
        adamw([p], [g], [m], [v], [], before, amsgrad=False, beta1=beta1, beta2=beta2, eps=workload.eps, **rate)


class Offload(Zero):
    """Zero's hooks and reductions, with units and an optimizer of its own."""

    def __init__(self, workload: Workload, stage: int, states_on: str, weights_on: str, folder: str) -> None:
        self.workload, self.stage, self.rank, self.ranks = workload, stage, dist.get_rank(), dist.get_world_size()
        self.reducing, self.last = None, False
        self.count, self.group = 0, dist.group.WORLD
        self.model = build_model(workload)
        owned = owners(self.model, 3)  # modules in stage 2 too: pieces of states are cut to fit them
        sizes = [-(-sum(p.numel() for p in own) // self.ranks) for _, own in owned]
        self.pieces = cut(sizes, longest(workload.model.parameters, self.ranks))
        narrow = self.model.lm_head.weight.dtype
        wide = torch.promote_types(narrow, torch.float32)
        rows = 3 if workload.optimizer == "adamw" else 1
        self.units: list[Partition] = []
        self.states = (files if states_on == "files" else host).States(sizes, self.pieces, rows, wide, folder)
        if weights_on == "device":
            self.weights = host.Resident(self.units)
        else:
            self.weights = (files if weights_on == "files" else host).Weights(
                sizes, self.pieces, narrow, self.states, folder
            )
        self.fallback = self.states.fallback
        for index, (_, own) in enumerate(owned):
            unit = Partition(own, stage, self.group, partial(self.weights.fetch, index), self._finish)
            self.states.add(unit.master)
            for piece in self.pieces:
                if piece.unit == index and stage == 3:
                    self.weights.put(piece, unit.master[piece.place])
            del unit.master  # it is among the states now
            self.units.append(unit)
        self.weights.flush()
        for index, (module, _) in enumerate(owned):
            self._reduce_when_ready(index)
            if stage == 3:
                self._gather_around(module, index)

    def _received(self, unit: Partition, part: Tensor) -> None:
        for other in self.units:
            other.let_go()  # one buffer is on its way at a time
        unit.add(part)

    def backward(self, batch: Batch) -> Tensor:
        loss = super().backward(batch)
        for unit in self.units:
            unit.settle()
        return loss

    @torch.no_grad()
    def update(self) -> None:
        mine = [unit.gradient for unit in self.units if unit.gradient is not None]
        clip_by_global_norm({(self.group,): mine}, self.workload.max_grad_norm)
        del mine
        self.count += 1
        spreading = []
        for piece, rows in self.states.stream():
            unit = self.units[piece.unit]
            assert unit.gradient is not None
            step(rows, unit.gradient[piece.place], self.count, self.workload)
            self.weights.put(piece, rows[0])
            if piece.place.stop == unit.elements // self.ranks:
                unit.gradient = None
                spreading.append(unit.spread())  # while the next unit is stepped
        self.weights.flush()
        for work in spreading:
            if work is not None:
                work.wait()

    def parameters(self) -> Mapping[str, Tensor]:
        return self._named([self.states.master(index) for index in range(len(self.units))])


def build(
    workload: Workload, topology: Topology, stage: int, states_on: str, weights_on: str, folder: str = ""
) -> Offload:
    """``states_on`` host or files; ``weights_on`` device (stage 2), host or files; ``folder``: see store.py."""
    return Offload(workload, stage, states_on, weights_on, folder)
