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


def plan(experts: Tensor, kept: Tensor | None, number: int, group: Group) -> tuple[Plan, Tensor]:
    """Experts [t, k] of this rank's tokens → the plan, and the rows [E] that this rank has for each expert.

    Ranks tell each other how many rows they have for each expert; that is all they need to know.
    """
    chosen = experts.flatten()
    if kept is not None:
        chosen = chosen.masked_fill(~kept.flatten(), number)  # behind the last expert
    rows = chosen.bincount(minlength=number)[:number]
    order = chosen.argsort(stable=True)[: int(rows.sum())]
    back = inverse(order, len(chosen))
    ranks, here = group.size(), group.rank()
    if ranks == 1:
        counts = rows.tolist()
        return Plan(order, back, None, None, [sum(counts)], [sum(counts)], counts, group), rows
    table = rows.new_empty(ranks * number)
    dist.all_gather_into_tensor(table, rows, group=group)
    table = table.view(ranks, ranks, -1)  # from rank, to rank, its experts
    mine = table[:, here]
    local = torch.arange(mine.shape[1], device=rows.device).expand_as(mine)
    by_expert = local.flatten().repeat_interleave(mine.flatten()).argsort(stable=True)
    send, receive, counts = table[here].sum(1).tolist(), mine.sum(1).tolist(), mine.sum(0).tolist()
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
