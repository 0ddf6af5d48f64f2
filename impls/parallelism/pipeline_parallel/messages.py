"""What stages on different ranks send one another: activations (F) and their gradients (B)."""

from collections import defaultdict, deque
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from impls.common.mesh import device
from impls.parallelism.pipeline_parallel.plan import Action, Plan, consumer

Channel = tuple[str, bool]  # kind, and whether to a higher rank


def channels(plan: Plan) -> list[Channel]:
    """What the plan's messages travel on: each kind and direction its own communicator, since NCCL's sends and receives
    of one pair of ranks wait for one another in the order in which each of the two posts them."""
    found = set()
    for rank, actions in enumerate(plan.actions):
        for action in actions:
            if needed := consumer(action, plan):
                found.add((action.kind, plan.rank_of[needed.stage] - rank))
    return sorted({(kind, distance > 0) for kind, distance in found if distance})


class Messages:
    """The messages of one step, of the shape and type of ``like``, named by the action that needs them. What one rank
    sends another is received in the order in which it is sent, whatever the order in which it is needed: NCCL knows no
    tags. The receive of a sender's first message is posted at the start, and of the next one when it arrives, so
    that they travel while this rank computes."""

    def __init__(self, plan: Plan, rank: int, groups: Mapping[Channel, dist.ProcessGroup], like: Tensor) -> None:
        self.rank, self.rank_of, self.groups, self.like = rank, plan.rank_of, groups, like
        self.sending: list[tuple[dist.Work, Tensor]] = []
        self.arriving: dict[Action, tuple[dist.Work, Tensor]] = {}
        self.here: dict[Action, Tensor] = {}  # from a stage on this rank
        # To this rank: sender and kind → the actions that need its messages, in the sender's order; and the way back.
        self.coming: dict[tuple[int, str], deque[Action]] = defaultdict(deque)
        self.source: dict[Action, tuple[int, str]] = {}
        for source, actions in enumerate(plan.actions):
            for action in actions:
                needed = consumer(action, plan)
                if needed and self.rank_of[needed.stage] == rank:
                    self.source[needed] = source, action.kind
                    if source != rank:
                        self.coming[source, action.kind].append(needed)
        for sender in list(self.coming):
            self.post(*sender)

    def post(self, source: int, kind: str) -> None:
        """Posts the receive of the sender's next message, if one is to come."""
        if queue := self.coming[source, kind]:
            buffer = torch.empty_like(self.like, device=device())
            work = dist.irecv(buffer, group=self.groups[kind, self.rank > source], group_src=source)
            self.arriving[queue.popleft()] = work, buffer

    def receive(self, action: Action) -> Tensor | None:
        """What the action needs; None if that is nothing: at the model's two ends, and weights' gradients."""
        if action not in self.source:
            return None
        if action in self.here:
            return self.here.pop(action)
        while action not in self.arriving:
            self.post(*self.source[action])
        work, buffer = self.arriving.pop(action)
        work.wait()
        return buffer

    def ahead(self, action: Action) -> None:
        """Posts the receive of what follows the action's message."""
        if action in self.source:
            self.post(*self.source[action])

    def send(self, tensor: Tensor, action: Action) -> None:
        """Gives the action what it needs."""
        target = self.rank_of[action.stage]
        if target == self.rank:
            self.here[action] = tensor
        else:
            group = self.groups[action.kind, target > self.rank]
            self.sending = [(work, kept) for work, kept in self.sending if not work.is_completed()]
            self.sending.append((dist.isend(tensor, group=group, group_dst=target), tensor))

    def finish(self) -> None:
        for work, _ in self.sending:
            work.wait()
