"""A schedule: the list of slots of each rank, in order; and which rank holds which layers.

A *slot* is computed as one: what its actions need from other ranks arrives before it, and what they give leaves after
it. Most slots are one action. Two kinds have several:

    B, W       a whole backward pass
    F, B, W    a forward pass of one micro-batch and a backward pass of another, their layers in turn (DualPipe's F&B)

    p ranks   m micro-batches   v stages a rank
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from harness.spec import ModelConfig
from impls.common.cuts import split


class Action(NamedTuple):
    """``kind``: F forward, B backward, W the weights' part of it. Where a micro-batch has W, B is the inputs' part;
    where it has none, B is both. U, in an asynchronous schedule, updates the stage's weights with the gradients of the
    backward passes since the last update, up to this micro-batch's. ``stage`` counts along the model; the stages of a
    second copy of it (DualPipe) count on from the first's."""

    kind: str
    stage: int
    micro: int


Slot = tuple[Action, ...]


class Plan(NamedTuple):
    """``slots[rank]`` in order; ``rank_of[stage]`` holds a stage. A copy of the model has ``stages`` of them, one
    behind the other. ``versions[stage][micro]``, in an asynchronous schedule: how many of the step's updates the
    weights have seen with which that stage computes this micro-batch, forward and backward."""

    slots: tuple[tuple[Slot, ...], ...]
    rank_of: tuple[int, ...]
    stages: int
    versions: tuple[tuple[int, ...], ...] = ()

    @property
    def actions(self) -> tuple[tuple[Action, ...], ...]:
        """Each rank's, in order."""
        return tuple(tuple(itertools.chain(*slots)) for slots in self.slots)


def one_by_one(ranks: Sequence[Sequence[Action]], rank_of: tuple[int, ...]) -> Plan:
    """The plan of one copy of the model in which each action is a slot of its own."""
    return Plan(tuple(tuple((action,) for action in actions) for actions in ranks), rank_of, len(rank_of))


def numbered(slots: Iterable[str], ways: tuple[int, int], micros: tuple[int, int] = (0, 0)) -> tuple[Slot, ...]:
    """One rank's slots in the papers' notation, say "F0", "B1 W1" or "F0 B1 W1", as actions. F, B or W is followed by
    the way that it is on, 0 or 1, whose stage on this rank is ``ways[way]`` and whose first micro-batch is
    ``micros[way]``; each way's micro-batches come in order. A "W" without a way is that of the oldest B that has had
    none."""
    following = {(kind, way): micro for kind in "FB" for way, micro in enumerate(micros)}
    due: list[Action] = []  # the weights' parts that are still to come
    found = []
    for slot in slots:
        actions = []
        for kind, *way in slot.split():
            if kind == "W":
                actions.append(next(a for a in due if not way or a.stage == ways[int(*way)]))
                due.remove(actions[-1])
            else:
                key = kind, int(*way)
                actions.append(Action(kind, ways[key[1]], following[key]))
                following[key] += 1
                due += [actions[-1]._replace(kind="W")] if kind == "B" else []
        found.append(tuple(actions))
    return tuple(found)


def before(action: Action, plan: Plan) -> list[Action]:
    """The actions that must be done before this one can begin."""
    kind, stage, micro = action
    first, last = stage % plan.stages == 0, (stage + 1) % plan.stages == 0
    if kind == "F":
        return [] if first else [Action("F", stage - 1, micro)]
    if kind in "WU":
        return [Action("B", stage, micro)]
    own = Action("F", stage, micro)
    return [own] if last else [own, Action("B", stage + 1, micro)]


def consumer(action: Action, plan: Plan) -> Action | None:
    """The action that takes this one's result: on the next stage, or for a backward pass on the previous one."""
    kind, stage, micro = action
    if kind == "F" and (stage + 1) % plan.stages:
        return Action("F", stage + 1, micro)
    if kind == "B" and stage % plan.stages:
        return Action("B", stage - 1, micro)
    return None


def homes(config: ModelConfig, plan: Plan) -> dict[str, tuple[int, ...]]:
    """The ranks that hold each parameter, by canonical name, in ascending order."""
    layers = split(config.num_hidden_layers, plan.stages)
    of_layer = {layer: stage for stage, held in enumerate(layers) for layer in held}
    found = {}
    for name, _ in config.shapes():
        first, last = name.startswith("model.embed_tokens"), name.startswith(("model.norm", "lm_head"))
        places = {0} if first else {plan.stages - 1} if last else {of_layer[int(name.split(".")[2])]}
        if first and config.tie_word_embeddings:
            places.add(plan.stages - 1)
        found[name] = tuple(sorted({r for s, r in enumerate(plan.rank_of) if s % plan.stages in places}))
    return found
