"""ZeRO-Offload (Ren et al. 2021, §3-5) and ZeRO-Infinity (Rajbhandari et al. 2021, §5, §6): ZeRO with its states in
large memory, on the host or in files.

A step in mixed precision is divided between device and host at the edges that carry only 2-byte values, and work of
O(Ψ · tokens) stays on the device (Ren et al., §3.2-3.4). States on the host are stepped there:

    device   ┌ p16 ── forward, backward ── g16 ┐        p16  weights      2Ψ        stay on the device (stage 2), or
    ─────────│─────────────────────────────────│───                                 are fetched a unit at a time (3)
    host     └ p16 ◄── float2half ── p32, m, v ◄ g16    g16  gradients    2Ψ/N_d    p32, m, v  12Ψ/N_d

    variant              weights   p32, m, v            Ψ parameters   N_d ranks, each owns 1/N_d of every unit
    offload_optimizer    device    host
    offload_params       host      host
    nvme_optimizer       device    files
    nvme_states          host      files
    nvme_params          files     files

    backward   compute unit 3 │ compute unit 2 │ …      update   step piece 0 │ step piece 1 │ …
    copies                    │ g of unit 3 ↓  │                 read piece 1 │ write piece 0, read piece 2 │ …

The naive form copies all gradients, then steps all states, then copies all weights. Here a unit's gradient is copied
while the one below is computed, and states are stepped in pieces (Ren et al., §5.1) while their neighbours are copied.

host.py has the host's memory, files.py and store.py have the files. Passes and reductions are ZeRO's.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from harness.spec import Topology, Workload
from impls.common.decoder import Decoder
from impls.common.flat import in_order
from impls.common.weights import TORCH_DTYPES, build_model
from impls.parallelism.zero.hooks import Unit, hook, modules
from impls.parallelism.zero.optimizer import Partition, Reducer
from impls.parallelism.zero.reference import Zero
from impls.parallelism.zero_offload import files, host
from impls.parallelism.zero_offload.laws import longest

PLACES: Mapping[str, Any] = {"host": host, "files": files}  # each has States and Weights


def step(rows: host.Rows, gradient: Tensor, count: int, workload: Workload) -> None:
    """Step number ``count`` of the optimizer on the host, in place: ``rows`` p, m, v and ``gradient``, each [n].

        m ← β₁m + (1 − β₁)g     v ← β₂v + (1 − β₂)g²     p ← p − η (m̂ / (√v̂ + ε) + λp)

    in one vectorised pass over the memory (Ren et al., §5.1). Plain SGD has no m and v.
    """
    p, *moments = rows
    g = gradient.to(p.dtype)  # [n]
    rate = {"lr": workload.lr, "weight_decay": workload.weight_decay, "maximize": False, "fused": True}
    if workload.optimizer == "sgd":
        sgd([p], [g], [None], momentum=0.0, dampening=0.0, nesterov=False, **rate)
    else:
        (m, v), (beta1, beta2) = moments, workload.betas
        before = [torch.tensor(count - 1.0)]  # the kernel counts its steps
        adamw([p], [g], [m], [v], [], before, amsgrad=False, beta1=beta1, beta2=beta2, eps=workload.eps, **rate)


class Offload:
    """A stage of ZeRO with the host's optimizer. ``partitions`` have this rank's gradients, also on the host;
    ``resident`` are those whose weights stay on the device."""

    def __init__(
        self,
        partitions: Sequence[Partition | Unit],
        resident: Sequence[Partition],
        reducer: Reducer,
        states: host.States | files.States,
        weights: host.Weights | files.Weights,
        workload: Workload,
    ) -> None:
        self.partitions, self.resident, self.reduce = partitions, resident, reducer.finish
        self.states, self.weights, self.workload, self.count = states, weights, workload, 0

    def step(self) -> None:
        self.count += 1
        # 1. Piece by piece: step p, m and v while their neighbours are read and written.
        for piece, rows in self.states.stream():
            step(rows, self.partitions[piece.unit].gradient[piece.place], self.count, self.workload)
            # 2. float2half, and the copy to the weights' place.
            self.weights.put(piece, rows[0])
        self.weights.flush()
        for partition in self.partitions:
            partition.gradient = None
        # 3. Weights on the device go to every rank (Ren et al., §4.2); the next passes fetch the others.
        for partition in self.resident:
            partition.gather()


class ZeroOffload(Zero):
    """ZeRO's loop with this stage."""

    def __init__(self, model: Decoder, stage: Offload, group: dist.ProcessGroup, workload: Workload) -> None:
        super().__init__(model, stage, group, workload)
        self.states, self.fallback = stage.states, stage.states.fallback

    def parameters(self) -> Mapping[str, Tensor]:
        return self.whole([self.states.master(index) for index in range(len(self.stage.partitions))])


def build(
    workload: Workload, topology: Topology, stage: int, states_on: str, weights_on: str, folder: str = ""
) -> ZeroOffload:
    """``states_on`` host or files; ``weights_on`` device (stage 2), host or files (3); ``folder``: see store.py."""
    model, group = build_model(workload), dist.group.WORLD
    owned = [parameters for _, parameters in modules(model)]
    # 1. The states' place: each unit's part in pieces, rows of p and, for AdamW, m and v.
    sizes = [ceil(sum(p.numel() for p in own) / group.size()) for own in owned]  # Ψ_u/N_d
    pieces = host.cut(sizes, longest(workload.model.parameters, group.size()))
    narrow = TORCH_DTYPES[workload.dtype]
    wide, rows = torch.promote_types(narrow, torch.float32), 3 if workload.optimizer == "adamw" else 1
    states = PLACES[states_on].States(sizes, pieces, rows, wide, folder)
    # 2. The weights' place, and how gradients leave the device.
    copies = torch.cuda.Stream() if torch.cuda.is_available() else None
    reduce = partial(host.reduced_to_host, group=group, copies=copies)
    resident: list[Partition] = []
    if stage == 2:  # weights stay whole on the device, and only gradients are reduced as in ZeRO-2
        weights, reducer = host.Weights(sizes, pieces, narrow, folder), Reducer(reduce)
        partitions = resident = [Partition(own, group) for own in owned]
        for partition in partitions:
            states.add(partition.master)
            weights.shards.append(partition.weights[partition.own])
        in_order(owned, lambda unit: reducer.start(partitions[unit]))
    else:  # the passes fetch weights from their place, as ZeRO-3 gathers them
        weights = PLACES[weights_on].Weights(sizes, pieces, narrow, folder)
        fetch = partial(host.fetched, weights=weights, group=group, copies=copies)
        partitions = [Unit(own, group, partial(fetch, index)) for index, own in enumerate(owned)]
        reducer = hook(model, partitions, reduce)
        for unit in partitions:
            weights.add(states.add(unit.master))
        weights.flush()
    # 3. The states hold the masters now: the device's copies go.
    for partition in partitions:
        partition.master = torch.empty(0, dtype=narrow)
    offload = Offload(partitions, resident, reducer, states, weights, workload)
    return ZeroOffload(model, offload, group, workload)
