"""ZeRO-3 with hooks: weights are also partitioned, and are whole only while their layer computes (P_os+g+p,
Rajbhandari et al. 2020, §5.3, §7.2.2).

    forward    compute                │ unit 1   │ unit 2   │ …
               gather        0, 1     │ unit 2   │ unit 3   │ …
    backward   compute                │ unit n   │ unit n−1 │ unit n−2 │ …
               gather        0, n     │ unit n−1 │ unit n−2 │ unit n−3 │ …
               reduce-scatter         │          │ unit n   │ unit n−1 │ …

Each unit is gathered while the previous one computes, and is released after its pass. Each attention, each MLP and the
head are units; the root, unit 0, has the other parameters and is whole during the entire pass.

    Ψ_u  parameters of a unit       N_d  ranks
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Workload
from impls.common.decoder import Decoder
from impls.common.flat import distinct, flatten, when_complete
from impls.common.optimizer import optimizer
from impls.parallelism.zero.optimizer import Reducer

Wait = Callable[[], object]
Reduce = Callable[[Tensor], Callable[[], Tensor]]  # whole gradient [Ψ_u] → wait for this rank's part [Ψ_u/N_d]
Gather = Callable[[Tensor, Tensor], Wait]  # (whole [Ψ_u], this rank's part [Ψ_u/N_d]) → wait until it is whole


def all_gather(whole: Tensor, part: Tensor, group: dist.ProcessGroup) -> Wait:
    return dist.all_gather_into_tensor(whole, part.to(whole.dtype), group=group, async_op=True).wait


def modules(model: Decoder) -> list[tuple[nn.Module, list[nn.Parameter]]]:
    """Each module that is a unit, with its parameters, in the order of the forward pass; the root comes first."""
    blocks = [block for layer in model.model.layers for block in (layer.self_attn, layer.mlp)]
    if not model.config.tie_word_embeddings:
        blocks.append(model.lm_head)
    inside = {parameter for block in blocks for parameter in block.parameters()}
    rest = [parameter for parameter in distinct(model.parameters()) if parameter not in inside]
    return [(model, rest), *((block, list(block.parameters())) for block in blocks)]


class Unit:
    """The parameters of one module, of which this rank keeps one part.

    ``weights`` [Ψ_u] a flat buffer, of which the parameters are views; it has memory only while it is gathered
    ``master`` [Ψ_u/N_d] this rank's part in float32, the only permanent copy
    ``gradient`` [Ψ_u/N_d] this rank's part of the sum over ranks, in float32
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, gather: Gather | None = None
    ) -> None:
        self.parameters, self.start_gather = parameters, gather or partial(all_gather, group=group)
        self.weights = flatten(parameters, multiple=group.size())  # [Ψ_u]
        self.bytes = self.weights.nbytes
        part = self.weights.chunk(group.size())[group.rank()]  # [Ψ_u/N_d]
        self.master = part.to(torch.promote_types(part.dtype, torch.float32), copy=True)  # [Ψ_u/N_d]
        self.gradient: Tensor | None = None
        self.wait: Wait | None = None
        self.release()

    def gather(self) -> None:
        """Starts to gather the weights. The tensor, which parameters and autograd's saved tensors are views of, stays
        the same; only its storage has memory or not."""
        storage = self.weights.untyped_storage()
        if storage.size() == 0:
            storage.resize_(self.bytes)
            self.wait = self.start_gather(self.weights, self.master)

    def arrive(self) -> None:
        if self.wait is not None:
            self.wait()
            self.wait = None

    def release(self) -> None:
        self.weights.untyped_storage().resize_(0)

    def add(self, part: Tensor) -> None:
        """Takes one micro-batch's reduced gradient."""
        part = part.to(self.master.dtype)
        self.gradient = part if self.gradient is None else self.gradient.add_(part)


class Zero3:
    """P_os+g+p over ``units``, one of each of :func:`modules`."""

    def __init__(self, model: Decoder, units: Sequence[Unit], workload: Workload, reduce: Reduce) -> None:
        self.partitions = units
        self.inner = optimizer([unit.master for unit in units], workload)
        self.reduce = hook(model, units, reduce).finish

    def step(self) -> None:
        """Steps this rank's parts; the next forward pass gathers them."""
        for unit in self.partitions:
            unit.master.grad, unit.gradient = unit.gradient, None
        self.inner.step()
        self.inner.zero_grad()


class Pass:
    """A pass over the units in their ``order``, the root first. Collectives match by their order alone, and a rank's
    data may skip layers: so each rank gathers all units, and ``leave``s at once those that it skips."""

    def __init__(self, order: Sequence[Unit], leave: Callable[[Unit], None]) -> None:
        self.order, self.leave = order, leave

    def reach(self, target: Unit | None) -> None:
        """Gathers the units up to this one, and the one ahead of it; None: up to the end."""
        if target is self.order[0]:
            self.coming = zip(self.order, [*self.order[1:], self.order[0]], strict=True)  # the root is still whole
        for unit, ahead in self.coming:
            unit.gather()  # nothing to do if it was the one ahead
            ahead.gather()
            unit.arrive()
            if unit is target:
                return
            self.leave(unit)

    def end(self) -> None:
        self.reach(None)
        self.leave(self.order[0])


def hook(model: Decoder, units: Sequence[Unit], reduce: Reduce) -> Reducer:
    """Gathers each unit before its passes, releases it after them, and reduces its gradient."""
    reducer = Reducer(reduce)

    def over(unit: Unit) -> None:
        unit.release()
        reducer.start(unit)  # zeros if there is no gradient

    root, *others = units
    forward = Pass(units, leave=lambda unit: unit.release())
    backward = Pass([root, *reversed(others)], leave=over)
    for unit, (module, _) in zip(units, modules(model), strict=True):
        module.register_forward_pre_hook(lambda *_, unit=unit: forward.reach(unit))
        module.register_full_backward_pre_hook(lambda *_, unit=unit: backward.reach(unit))
        if unit is not root:
            module.register_forward_hook(lambda *_, unit=unit: unit.release())
            when_complete(unit.parameters, partial(over, unit))
    model.register_forward_hook(lambda *_: forward.end())
    root.parameters[0].register_post_accumulate_grad_hook(lambda _: backward.end())  # the embedding's, the last one
    return reducer
