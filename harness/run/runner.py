"""The runner owns the worlds, and runs every case once for all of its measures."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

from harness import catalog
from harness.launch.base import Launcher
from harness.launch.outcome import Done, Job, Outcome
from harness.run.ahead import Ahead
from harness.run.blocks import Block, BlockKey, block_key, run_block, small, world_of
from harness.run.builds import Builds
from harness.run.oracle import Oracles, trouble
from harness.spec import Card, Case, Functions, Measurement, Topology, Trainers
from harness.spec.contract import DENSE
from harness.spec.requires import missing
from harness.spec.run import Checked as Rank

CHECKED, TIMED = "harness.launch.checked", "harness.launch.timed"


@dataclass(frozen=True)
class Checked:
    """The results of a case's checked run: every rank's record, or the one measurement that gives the reason for their
    absence."""

    ranks: tuple[Rank, ...] = ()
    problem: Measurement | None = None


class Runner:
    """``capacity``: the most ranks of a case; ``timed``: the cases whose steps are timed; ``cases``: all that run."""

    def __init__(
        self,
        cards: Mapping[str, Card],
        launcher: Launcher,
        timeout: float = 120.0,
        capacity: int = 4,
        timed: Sequence[Case] = (),
        cases: Sequence[Case] = (),
    ) -> None:
        import torch  # imports torch, which collection does not need

        torch.set_num_threads(1)  # the judged tensors are small: threads would only wait for each other
        self.cards, self.launcher, self.timeout, self.capacity = cards, launcher, timeout, capacity
        self.timed, self.cores = tuple(timed), launcher.cores
        self.builds = Builds()
        self._settings: dict[tuple[Any, ...], list[Case]] = {}
        for case in cases:
            self._settings.setdefault(_setting(case), []).append(case)
        self._checked: dict[str, Checked] = {}
        self._ahead = Ahead(self._check)
        self._oracles = Oracles(launcher, 4 * timeout)
        self._references: dict[tuple[Any, ...], Future[Any]] = {}  # expected cases, by the oracles' keys
        self._once: dict[tuple[Any, ...], list[Any] | Measurement] = {}
        self._lock = Lock()
        self._blocks: dict[BlockKey, Block] = {}

    def expect(self, cases: Iterable[Case], checked: Sequence[Case] = (), parity: bool = False) -> None:
        """Begins work that will be needed: the compilation for ``cases``, and the ``checked`` runs in this order, if
        their models are small and fit on a device together. ``parity``: also their oracles."""
        for case in cases:
            if (module := self.operators(case)) and not self.obstacle(case):
                self.builds.begin(module)
        able = (case for case in checked if small(case) and not self.obstacle(case))
        self._ahead.expect(self._check_and_expect_oracle if parity else self._check, able)

    def close(self) -> None:
        self.builds.close()
        self._ahead.close()
        self.launcher.close()

    # Requirements of a case

    def card(self, case: Case) -> Card:
        return self.cards[case.topic]

    def obstacle(self, case: Case) -> str:
        """The reason why this case cannot run here, or an empty string; found without importing the engine."""
        if case.topology.world_size > self.capacity:
            return f"{case.topology} needs {case.topology.world_size} ranks; this run has {self.capacity} (--ranks)"
        if shortage := self.launcher.shortage(case.topology.world_size):
            return f"{case.topology}: {shortage}"
        engine = self.card(case).engines[case.engine]
        return missing(engine, self.launcher.device == "cuda") or case.workload.check(case.topology)

    def peers(self, case: Case) -> list[Case]:
        """The cases of all engines in this one's setting."""
        return self._settings.get(_setting(case), [])

    def crowded(self, case: Case) -> bool:
        size = case.topology.world_size
        return size > self.capacity or bool(self.launcher.shortage(size))

    def operators(self, case: Case) -> str:
        """The module that compiles code for the case's engine; empty if nothing is compiled."""
        return catalog.operators(self.card(case), case.engine, case.variant)

    def job(self, case: Case, target: str, **more: Any) -> Job:
        """A call of ``target``, a task of the case's contract, in each of its ranks."""
        card, work = self.card(case), case.workload
        arguments: dict[str, Any] = {
            "build": card.engines[case.engine].build,
            "variant": dict(card.variants[case.variant]),
            "workload": work,
            "topology": case.topology,
        }
        if isinstance(card.contract, Trainers):
            _, options = catalog.dense(card.contract, work, case.topology, card.variants[case.variant])
            arguments |= {"data": card.contract.data, "options": options}
        elif isinstance(card.contract, Functions):
            arguments |= {"problem": card.contract.problem, "exact": card.contract.exact}
        return Job(target, arguments | more)

    def run(self, case: Case, target: str, **more: Any) -> list[Any] | Measurement:
        """The results of a task from each rank of a fresh world of the case's engine, or the reason for their
        absence."""
        outcomes = self.outcomes(case, target, **more)
        return trouble(outcomes) or [outcome.value for outcome in outcomes if isinstance(outcome, Done)]

    def outcomes(self, case: Case, target: str, **more: Any) -> tuple[Outcome, ...]:
        """The same as it ended on each rank."""
        if module := self.operators(case):
            self.builds.wait(module)
        world = world_of(self.launcher, case, self.card(case))
        try:
            return world.run(self.job(case, target, **more), self.timeout)
        finally:
            world.close()

    def once(self, case: Case, target: str, **more: Any) -> list[Any] | Measurement:
        """The same with a cache: a reference's run serves all of its peers."""
        key = (case.id, target, *more.items())
        if key not in self._once:
            self._once[key] = self.run(case, target, **more)
        return self._once[key]

    # Checked runs

    def checked(self, case: Case, keep: bool = False) -> Checked:
        """The case's checked run, which happens once. A large model's tensors are included only if they are needed."""
        if case.id not in self._checked:
            self._checked[case.id] = self._ahead(case) if small(case) else self._check(case, keep)
        return self._checked[case.id]

    def taken(self, case: Case) -> Checked:
        """The checked run with its tensors. Only the figures are cached, since a thousand cases' tensors would take
        gigabytes; a second call runs the case again."""
        found = self.checked(case, keep=True)
        if found.ranks and found.ranks[0].tensors is None:
            found = self._check(case)
        self._checked[case.id] = replace(found, ranks=tuple(replace(rank, tensors=None) for rank in found.ranks))
        return found

    def forget(self) -> None:
        """Forgets the checked runs, where cases of one id are not the same."""
        self._checked.clear()

    def known(self, case: Case) -> tuple[Rank, ...]:
        """The ranks of its checked run, if it has happened."""
        return self._checked[case.id].ranks if case.id in self._checked else ()

    def _check_and_expect_oracle(self, case: Case) -> Checked:
        found = self._check(case)
        if not found.problem:
            card = self.card(case)
            key = self._oracles.key(case, card)
            with self._lock:
                if key not in self._references:
                    self._references[key] = self._ahead.also(partial(self._oracles.reference, case, card))
        return found

    def _check(self, case: Case, keep: bool = True) -> Checked:
        kind = "trainer" if isinstance(self.card(case).contract, Trainers) else "function"
        found = self.run(case, f"{CHECKED}:{kind}", keep=keep)
        return Checked(problem=found) if isinstance(found, Measurement) else Checked(ranks=tuple(found))

    # Oracles

    def reference(self, case: Case) -> Any:
        """The :class:`harness.judge.parity.Reference` of the case's work, or a measurement with the reason for its
        absence."""
        card = self.card(case)
        key = self._oracles.key(case, card)
        if expected := self._references.get(key):
            expected.result()
            self._references.pop(key, None)  # the oracles keep the latest
        return self._oracles.reference(case, card)

    def replays(self, case: Case) -> bool:
        """Whether a step of the case's dense model is one of the workload's optimizer on its gradients."""
        contract, options, _ = self._oracles.start(case, self.card(case))
        if isinstance(contract.replays, str):
            return bool(catalog.load(contract.replays)(**options))
        return contract.plain == DENSE or contract.replays

    def curves(self, case: Case) -> Any:
        """The oracle's learning curve and its noise floor at each step, or a measurement with the reason for its
        absence."""
        return self._oracles.curves(case, self.card(case))

    def initial(self, case: Case) -> Mapping[str, Any]:
        """The initial weights of every engine for a Trainer's case."""
        return self._oracles.initial(*self._oracles.start(case, self.card(case)))

    # Timed rounds

    def block(self, case: Case) -> Block:
        """The timed block of the case's topic, topology and work; it runs once for all its cases."""
        key = block_key(case)
        if key not in self._blocks or case not in self._blocks[key].cases:
            members = [c for c in dict.fromkeys((*self.timed, case)) if block_key(c) == key and not self.obstacle(c)]
            for module in {found for member in members if (found := self.operators(member))}:
                self.builds.wait(module)
            jobs = {c.id: self._timed(c) for c in members}
            self.rest()
            self._blocks[key] = run_block(self.launcher, members, jobs, self.card(case), self.timeout, self._ahead.also)
        return self._blocks[key]

    def _timed(self, case: Case) -> Job:
        card = self.card(case)
        if isinstance(card.contract, Trainers):
            return self.job(case, f"{TIMED}:trainer")
        return self.job(case, f"{TIMED}:function", oracle=case.workload.name not in card.work.large)

    def rest(self) -> None:
        """Waits until all work begun ahead has ended, since timing follows."""
        self._ahead.rest()
        self.builds.rest()

    def shared_gpus(self, topology: Topology) -> str:
        """The record's note about ranks that share a GPU; empty if none do."""
        if 0 < self.launcher.gpus < topology.world_size:
            return f"{topology.world_size} ranks share the GPU; their messages go through the host"
        return ""


def _setting(case: Case) -> tuple[Any, ...]:
    return case.topic, case.variant, case.topology, case.workload
