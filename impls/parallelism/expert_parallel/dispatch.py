"""Dispatch and combine: a token's rows are sent to its experts, on any rank, and back.

Two ranks with two experts each; each token has k slots, one for each expert that it chose:

    1. permute        ┌ expert 0 ┬ expert 1 ┬ expert 2 ┬ expert 3 ┐    rank 0's rows, sorted by expert: the rows for
                       ╲─ to rank 0 ───────╱ ╲─ to rank 1 ───────╱     a rank is one run
    2. all-to-all     ┌ 0 of rank 0 │ 1 of rank 0 │ 0 of rank 1 │ 1 of rank 1 ┐    rows received by rank 0
    3. permute        ┌ 0 of rank 0 │ 0 of rank 1 │ 1 of rank 0 │ 1 of rank 1 ┐    each expert's rows together

Combine is the same path in reverse. As a linear map it is the transpose of dispatch, so the backward pass of each has
the traffic of the other.

    t tokens   k choices   E experts, E/ep of them on a rank   n rows sent, t·k less those dropped   m rows received
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

Group = dist.ProcessGroup


class AllToAll(Function):
    """x [n, …], whose first send[0] rows go to rank 0 and so on → [m, …], of which receive[0] are from rank 0. The
    gradient takes the same path in reverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, send: list[int], receive: list[int], group: Group) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        if group.size() == 1:
            return x.view_as(x)
        out = x.new_empty(sum(receive), *x.shape[1:])  # [m, …]
        dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None, None]:
        return AllToAll.apply(d_out, ctx.receive, ctx.send, ctx.group), None, None, None


@dataclass(frozen=True)
class Route:
    """The destination of the rows of this rank's tokens, and the rows that this rank's experts receive."""

    slots: Tensor  # [n]: the slots (token · k + choice) in the order in which their rows leave
    by_expert: Tensor  # [m]: the received rows in the order of the experts
    load: Tensor  # [E]: rows that this rank has for each expert
    send: list[int]  # [ep]: rows to each rank
    receive: list[int]  # [ep]: rows from each rank
    counts: list[int]  # [E/ep]: rows of each of this rank's experts
    group: Group


def plan(experts: Tensor, kept: Tensor | None, number: int, group: Group) -> Route:
    """The route of tokens that chose ``experts`` [t, k] of ``number`` = E; ``kept`` [t, k] is false where a token is
    dropped.

    The host waits for the device once, in step 3: the splits of an all-to-all are numbers on the host. A layer that
    drops no token cannot avoid this (a layer that pads each expert to its capacity can)."""
    ranks, here = group.size(), group.rank()
    chosen = experts.flatten()  # [t·k]
    if kept is not None:
        chosen = chosen.masked_fill(~kept.flatten(), number)  # after the last expert

    # 1. Count this rank's rows for each expert.
    load = count(chosen, number)  # [E]

    # 2. Every rank tells the others its counts.
    loads = load  # [ep · E]
    if ranks > 1:
        loads = load.new_empty(ranks * number)
        dist.all_gather_into_tensor(loads, load, group=group)
    table = loads.view(ranks, ranks, -1)  # [ep, ep, E/ep]: rows from a rank, to a rank, for each expert there

    # 3. The host reads the splits.
    rows = table.cpu()
    send = rows[here].sum(1).tolist()  # [ep]
    receive = rows[:, here].sum(1).tolist()  # [ep]
    counts = rows[:, here].sum(0).tolist()  # [E/ep]

    # 4. The two permutations: slots by expert, and received rows by expert.
    slots = chosen.argsort(stable=True)[: sum(send)]  # [n]: dropped slots come last
    arriving = table[:, here].flatten()  # [ep · E/ep]: lengths of the runs that arrive, by rank, then by expert
    expert_of_run = torch.arange(number // ranks, device=chosen.device).repeat(ranks)  # [ep · E/ep]
    expert_of_row = expert_of_run.repeat_interleave(arriving, output_size=sum(receive))  # [m]
    by_expert = expert_of_row.argsort(stable=True)  # [m]
    return Route(slots, by_expert, load, send, receive, counts, group)


def dispatch(x: Tensor, route: Route) -> Tensor:
    """x [t·k, …], a row for each slot → [m, …], each expert's rows together."""
    x = x.index_select(0, route.slots)  # [n, …]
    x = AllToAll.apply(x, route.send, route.receive, route.group)  # [m, …], by rank, then by expert
    return x.index_select(0, route.by_expert)  # [m, …], by expert


def combine(y: Tensor, route: Route, slots: int) -> Tensor:
    """y [m, …], each expert's rows together → [t·k, …], zeros in dropped slots. index_put keeps nothing of y for the
    backward pass, unlike index_add and index_copy."""
    y = torch.zeros_like(y).index_put((route.by_expert,), y)  # [m, …], by rank, then by expert
    y = AllToAll.apply(y, route.receive, route.send, route.group)  # [n, …]
    return y.new_zeros(slots, *y.shape[1:]).index_put((route.slots,), y)  # [t·k, …]


def count(experts: Tensor, number: int) -> Tensor:
    """The number of occurrences of each of 0 … number − 1, [number]. CUDA's bincount makes the host wait."""
    flat = experts.flatten()
    return flat.new_zeros(number + 1).scatter_add_(0, flat, torch.ones_like(flat))[:number]


def add_up(x: Tensor, group: Group) -> Tensor:
    """Sums ``x`` over the group's ranks in place, and returns it."""
    if group.size() > 1:
        dist.all_reduce(x, group=group)
    return x
