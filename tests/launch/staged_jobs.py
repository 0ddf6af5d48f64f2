"""Collectives through :mod:`harness.launch.staged`, on CPU tensors, which are treated like CUDA's."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.launch.rank import Context
from harness.launch.staged import staged


class Through(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.went: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "c10d":
            return func(*args, **(kwargs or {}))
        self.went.append(func._schema.name)
        return staged(func)(*args, **(kwargs or {}))


def collectives(context: Context) -> dict[str, Any]:
    """The result of each on this rank of 2; its tensors hold 1 + the rank."""
    rank, size = context.rank, context.size
    mine = torch.full((4,), 1.0 + rank)
    found: dict[str, Tensor] = {}
    with Through() as through:
        found["all_reduce"] = mine.clone()
        dist.all_reduce(found["all_reduce"])
        found["broadcast"] = mine.clone()
        dist.broadcast(found["broadcast"], 1)
        found["all_gather"] = torch.zeros(4 * size)
        dist.all_gather_into_tensor(found["all_gather"], mine)
        parts = [torch.zeros(4) for _ in range(size)]
        dist.all_gather(parts, mine)
        found["all_gather_list"] = torch.cat(parts)
        found["reduce_scatter"] = torch.zeros(2)
        dist.reduce_scatter_tensor(found["reduce_scatter"], mine)
        buffer = mine.clone()
        dist.reduce_scatter_tensor(buffer[2 * rank : 2 * rank + 2], buffer)
        found["reduce_scatter_in_place"] = buffer[2 * rank : 2 * rank + 2]
        found["all_to_all"] = torch.zeros(4)
        dist.all_to_all_single(found["all_to_all"], mine)
        found["received"] = torch.zeros(4)
        with dist._coalescing_manager(async_ops=True) as works:
            gathered = [torch.zeros(8), torch.zeros(8)]
            for into in gathered:
                dist.all_gather_into_tensor(into, mine)
        works.wait()
        found["coalesced"] = torch.cat(gathered)
        pair = [
            dist.P2POp(dist.isend, mine, 1 - rank),
            dist.P2POp(dist.irecv, found["received"], 1 - rank),
        ]
        for work in dist.batch_isend_irecv(pair):
            work.wait()
        found["functional"] = torch.distributed._functional_collectives.all_reduce(mine, "sum", list(range(size))) + 0
        ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1, bias=False))
        ddp(mine).sum().backward()
        (gradient,) = (p.grad for p in ddp.parameters())
        assert gradient is not None
        found["ddp"] = gradient[0].clone()
    return {name: tensor.tolist() for name, tensor in found.items()} | {"went": sorted(set(through.went))}
