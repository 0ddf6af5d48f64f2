"""The way of a token's rows to its experts and back: two linear maps, each the other's transpose.

slots of a rank           one for each token and choice, t·k of them; a dropped one travels nowhere
  │ order                 rows by expert, so that what goes to a rank is one run
  ▼
┌ expert 0 ┬ expert 1 ┬ expert 2 ┬ expert 3 ┐   rank 0's rows; splits are uneven
  ╲──────────────────╱ ╲──────────────────╱     all-to-all
┌ 0 from rank 0 │ 1 from 0 │ 0 from 1 │ 1 from 1 ┐  on rank 0
  │ by_expert
  ▼
┌ 0 from 0 │ 0 from 1 │ 1 from 0 │ 1 from 1 ┐     each expert's rows together
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

Group = dist.ProcessGroup


@dataclass(frozen=True)
class Plan:
    """``order`` [n]: the slots in the order in which their rows leave; ``back`` [t·k]: the row of each slot, n for one
    that was dropped. ``by_expert`` [m]: received rows in the order of the experts, ``home`` [m]: its inverse; None
    where there is one rank. ``send``, ``receive``: rows to and from each rank; ``counts``: rows of each local expert.
    """

    order: Tensor
    back: Tensor
    by_expert: Tensor | None
    home: Tensor | None
    send: list[int]
    receive: list[int]
    counts: list[int]
    group: Group


def inverse(order: Tensor, size: int) -> Tensor:
    """The place of each of 0 … size − 1 in ``order``, len(order) for what is not in it."""
    places = torch.full((size,), len(order), device=order.device)
    places[order] = torch.arange(len(order), device=order.device)
    return places


def count(experts: Tensor, number: int) -> Tensor:
    """How often each of 0 … number − 1 is among them. CUDA's bincount makes the host wait for the largest."""
    flat = experts.flatten()
    return flat.new_zeros(number + 1).scatter_add_(0, flat, torch.ones_like(flat))[:number]


def plan(experts: Tensor, kept: Tensor | None, number: int, group: Group) -> tuple[Plan, Tensor]:
    """Experts [t, k] of this rank's tokens → the plan, and the rows [E] that this rank has for each expert.

    Ranks tell each other how many rows they have for each expert; that is all they need to know. The host waits for it
    once: it allocates what comes, and tells the all-to-all what goes where.
    """
    chosen = experts.flatten()
    if kept is not None:
        chosen = chosen.masked_fill(~kept.flatten(), number)  # behind the last expert
    rows = count(chosen, number)
    ranks, here = group.size(), group.rank()
    table = rows if ranks == 1 else rows.new_empty(ranks * number)
    if ranks > 1:
        dist.all_gather_into_tensor(table, rows, group=group)
    table = table.view(ranks, ranks, -1)  # from rank, to rank, its experts
    known = table.tolist()
    send, receive = [sum(to) for to in known[here]], [sum(sender[here]) for sender in known]
    counts = [sum(of_expert) for of_expert in zip(*(sender[here] for sender in known), strict=True)]
    order = chosen.argsort(stable=True)[: sum(send)]
    back = inverse(order, len(chosen))
    if ranks == 1:
        return Plan(order, back, None, None, send, receive, counts, group), rows
    mine = table[:, here]
    local = torch.arange(mine.shape[1], device=rows.device).expand_as(mine)
    by_expert = local.flatten().repeat_interleave(mine.flatten(), output_size=sum(receive)).argsort(stable=True)
    return Plan(order, back, by_expert, inverse(by_expert, len(by_expert)), send, receive, counts, group), rows


def add_up(x: Tensor, group: Group) -> Tensor:
    """``x`` itself, now the sum over the group's ranks."""
    if group.size() > 1:
        dist.all_reduce(x, group=group)
    return x


def all_to_all(x: Tensor, send: list[int], receive: list[int], group: Group) -> Tensor:
    out = x.new_empty(sum(receive), *x.shape[1:])
    dist.all_to_all_single(out, x, receive, send, group=group)
    return out


def to_experts(x: Tensor, plan: Plan) -> Tensor:
    """[t, …] or [t·k, …] → [m, …]: an entry of x goes wherever its slots go."""
    x = x.index_select(0, plan.order // (len(plan.back) // len(x)))
    if plan.by_expert is None:
        return x
    return all_to_all(x, plan.send, plan.receive, plan.group).index_select(0, plan.by_expert)


def to_tokens(x: Tensor, plan: Plan, size: int) -> Tensor:
    """[m, …] → [size, …], size t or t·k: what came back to an entry's slots, summed. Dropped slots read zeros."""
    if plan.home is not None:
        x = all_to_all(x.index_select(0, plan.home), plan.receive, plan.send, plan.group)
    if len(x) < len(plan.back):
        x = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
    x = x.index_select(0, plan.back)
    return x.view(size, -1, *x.shape[1:]).sum(1) if size < len(x) else x


class Dispatch(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan) -> Tensor:
        ctx.plan, ctx.size = plan, len(x)
        return to_experts(x, plan)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return to_tokens(gradient, ctx.plan, ctx.size), None


class Combine(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, size: int) -> Tensor:
        ctx.plan = plan
        return to_tokens(x, plan, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return to_experts(gradient.contiguous(), ctx.plan), None, None
