"""The one stateful object of a session: it owns the worlds and runs every case once, however many tests look at it."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

from harness import catalog
from harness.ahead import Ahead
from harness.blocks import Block, BlockKey, block_key, run_block, small, world_of
from harness.builds import Builds
from harness.judge import law as law_judge
from harness.launch.base import Launcher
from harness.launch.outcome import Done, Job
from harness.oracle import TASKS, Oracles, no_run, trouble
from harness.spec import Card, Case, Claim, Finding, Topology, Workload
from harness.spec.requires import missing
from harness.waivers import Waiver


@dataclass(frozen=True)
class Checked:
    """What the checked run of a case gave: every rank's figures, or the one finding that says why there are none."""

    ranks: tuple[Mapping[str, Any], ...] = ()
    problem: Finding | None = None


class Lab:
    """``record`` is called with (case, findings) as soon as something is measured: a killed session keeps it."""

    STATUSES = ("reproduced", "contradicted", "formula only", "out of reach here")  # of a published claim

    def __init__(
        self,
        cards: Mapping[str, Card],
        cases: Sequence[Case],
        launcher: Launcher,
        record: Callable[[Case, Sequence[Finding]], None],
        waivers: Sequence[Waiver] = (),
        timeout: float = 120.0,
        capacity: int = 4,
    ) -> None:
        import torch  # collection does without

        torch.set_num_threads(1)  # what is judged is small: threads would wait for each other and for the ranks' cores
        self.cards, self.cases, self.launcher = cards, list(cases), launcher
        self.waivers, self.timeout, self.capacity = waivers, timeout, capacity
        self._record = record
        self.universe = list(cases)  # every case that there is of these topics and engines, also those not selected
        self.cores = len(os.sched_getaffinity(0))
        self.timed: list[Case] = []  # the cases of this session whose throughput is asked for
        self._checked: dict[str, Checked] = {}
        self._ahead = Ahead(self._check)
        self.builds = Builds()
        for case in self.cases:
            if (module := self.operators(case)) and not self.obstacle(case):
                self.builds.begin(module)
        self._oracles = Oracles(launcher, 4 * timeout)
        self._references: dict[tuple[Any, ...], Future[Any]] = {}  # that are expected, by the oracles' keys
        self._lock = Lock()
        self._blocks: dict[BlockKey, Block] = {}
        self.judged: dict[str, list[Finding]] = {}

    def expect(self, cases: Sequence[Case], parity: bool) -> None:
        """The checked runs that will be asked for, in this order; those of small models, which fit a device beside
        each other, are begun ahead. ``parity``: so are the oracles that will judge them."""
        able = (case for case in cases if small(case) and not self.obstacle(case))
        self._ahead.expect(self._check_and_expect_oracle if parity else self._check, able)

    def close(self) -> None:
        self.builds.close()
        self._ahead.close()
        self.launcher.close()

    # What a case needs to run

    def card(self, case: Case) -> Card:
        return self.cards[case.topic]

    def obstacle(self, case: Case) -> str:
        """Why this case cannot run here, or an empty string; decided without importing the engine."""
        if self._crowded(case):
            return f"{case.topology} needs {case.topology.world_size} ranks; this run has {self.capacity} (--ranks)"
        engine = self.card(case).engines[case.engine]
        return missing(engine, self.launcher.device == "cuda") or case.workload.check(case.topology)

    def operators(self, case: Case) -> str:
        """The module that compiles what the case's engine needs; empty if it needs nothing."""
        return catalog.operators(self.card(case), case.engine, case.variant)

    def _crowded(self, case: Case) -> bool:
        return case.topology.world_size > self.capacity

    def _kind(self, case: Case) -> str:
        """Of what its engines build; it ends the name of the tasks that there are for both."""
        return "function" if catalog.problem(self.card(case)) else "trainer"

    def _job(self, case: Case, task: str, **more: Any) -> Job:
        card = self.card(case)
        problem = catalog.problem(card)
        arguments = {
            "build": card.engines[case.engine].build,
            "variant": dict(card.variants[case.variant]),
            "workload": case.workload,
            "topology": case.topology,
            **({"problem": problem} if problem else {"data": catalog.DATA}),
            **more,
        }
        return Job(f"{TASKS}:{task}", arguments)

    def run(self, case: Case, task: str, **more: Any) -> list[Any] | Finding:
        """What each rank of a fresh world of the case's engine gave for a task of :mod:`harness.launch.tasks`, or why
        there is nothing."""
        if module := self.operators(case):
            self.builds.wait(module)
        world = world_of(self.launcher, case, self.card(case))
        try:
            outcomes = world.run(self._job(case, task, **more), self.timeout)
        finally:
            world.close()
        return trouble(outcomes) or [outcome.value for outcome in outcomes if isinstance(outcome, Done)]

    # Checked runs

    def checked(self, case: Case, keep: bool = False) -> Checked:
        """The case's checked run; it happens once. A large model's tensors come along only if they are to be kept."""
        if case.id not in self._checked:
            self._checked[case.id] = self._ahead(case) if small(case) else self._check(case, keep)
        return self._checked[case.id]

    def taken(self, case: Case) -> Checked:
        """The checked run with its tensors, of which only the figures are kept: a thousand cases' would take gigabytes.
        Asked again, the case runs again."""
        found = self.checked(case, keep=True)
        if found.ranks and found.ranks[0]["tensors"] is None:
            found = self._check(case)
        self._checked[case.id] = replace(found, ranks=tuple({**rank, "tensors": None} for rank in found.ranks))
        return found

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
        found = self.run(case, f"checked_{self._kind(case)}", keep=keep)
        return Checked(problem=found) if isinstance(found, Finding) else Checked(ranks=tuple(found))

    # What is right

    def reference(self, case: Case) -> Any:
        """The :class:`harness.judge.parity.Reference` of the case's work, or the finding that says why it has none."""
        card = self.card(case)
        expected = self._references.get(self._oracles.key(case, card))
        return expected.result() if expected else self._oracles.reference(case, card)

    def curves(self, case: Case) -> Any:
        """The oracle's learning curve and its noise floor at each step, or the finding that says why there is none."""
        return self._oracles.curves(case, self.card(case))

    def initial(self, work: Workload) -> Mapping[str, Any]:
        """The weights that every engine starts from."""
        return self._oracles.initial(work)

    def _conclude(self, case: Case, findings: Sequence[Finding]) -> list[Finding]:
        concluded = []
        for finding in findings:
            detail = dict(finding.detail)
            for waiver in self.waivers:
                if finding.verdict == "fail" and not waiver.expired and waiver.about(case.id, finding):
                    detail["waiver"] = f"{waiver.reason} ({waiver.versions}, until {waiver.expires})"
            for rank in self._ranks(case)[:1]:
                detail |= {name: rank[name] for name in ("fallback", "products") if rank.get(name)}
            if 0 < self.launcher.gpus < case.topology.world_size:
                detail["device_note"] = f"{case.topology.world_size} ranks share the GPU; their messages pass the host"
            concluded.append(finding.but(detail=detail))
        self._record(case, concluded)
        self.judged.setdefault(case.id, []).extend(concluded)
        return concluded

    def _ranks(self, case: Case) -> tuple[Mapping[str, Any], ...]:
        return self._checked[case.id].ranks if case.id in self._checked else ()

    # Measures

    def measure(self, name: str, case: Case) -> list[Finding]:
        """Takes one of :data:`harness.measures.MEASURES`, and records what it finds."""
        if reason := self.obstacle(case):
            found = [no_run("skipped", reason)]
        else:
            found = catalog.load(f"harness.measures.{name}:take")(self, case)
        return self._conclude(case, [finding.but(measure=name) for finding in found])

    def against_law(
        self, case: Case, measure: str, quantity: str, value: float, padding: float = 0.0, elements: int = 0
    ) -> Finding:
        """``elements`` of padding travel as the parameters do: their bytes follow from the law itself."""
        card = self.card(case)
        for law in card.laws:
            if (law.measure, law.quantity) != (measure, quantity):
                continue
            formula = catalog.load(law.formula)
            promised = formula(case.workload, case.topology, **card.variants[case.variant])
            if promised is None:
                continue
            if elements:
                held = case.workload.model.parameters / (case.topology.tp * case.topology.pp)
                padding = promised * elements / held
            return law_judge.judge(law, promised, value, "B", padding)
        text = f"{value:,.0f} B; no law is stated for it here"
        return Finding(measure, quantity, value, "B", "pass", text)

    def block(self, case: Case) -> Block:
        """The timed block of the case's topic, topology and work; it runs once for all its cases."""
        key = block_key(case)
        if key not in self._blocks:
            members = [c for c in self.timed if block_key(c) == key and not self.obstacle(c)]
            for module in {found for member in members if (found := self.operators(member))}:
                self.builds.wait(module)
            jobs = {c.id: self._job(c, f"prepare_{self._kind(c)}") for c in members}
            self.rest()
            self._blocks[key] = run_block(self.launcher, members, jobs, self.card(case), self.timeout, self._ahead.also)
        return self._blocks[key]

    def rest(self) -> None:
        """Waits until nothing runs that was begun ahead: what comes is timed."""
        self._ahead.rest()
        self.builds.rest()

    def claim(self, topic: str, claim: Claim) -> Finding:
        """A published figure, judged by what this session measured of its topic."""
        records = [
            {
                "case": case.id,
                "topic": case.topic,
                "variant": case.variant,
                "engine": case.engine,
                "topology": str(case.topology),
                "workload": case.workload.name,
                "dtype": case.workload.dtype,
                "optimizer": case.workload.optimizer,
                **{name: getattr(finding, name) for name in ("measure", "quantity", "value", "unit", "law")},
                "verdict": finding.verdict,
                "detail": finding.detail,
            }
            for case in self.cases
            if case.topic == topic
            for finding in self.judged.get(case.id, [])
        ]
        finding: Finding = catalog.load(claim.check)(records)
        detail = {"text": claim.text, "source": claim.source, **finding.detail}
        about = Case(topic, topic, "", Topology(), Workload())
        return self._conclude(about, [finding.but(measure="claim", quantity=claim.name, detail=detail)])[0]

    def needed(self, waiver: Waiver) -> bool:
        """Whether something failed that this waiver covers. A session that did not run all cases that it covers cannot
        tell, nor one that left a figure undecided, nor one on GPUs of a waiver that is not for them alone: for these,
        it need only match a case that there is."""
        found = {f.verdict for case, findings in self.judged.items() for f in findings if waiver.about(case, f)}
        covered = [case for case in self.universe if waiver.matches(case.id)]
        elsewhere = self.launcher.device != (waiver.device or "cpu")
        ran = {case.id for case in self.cases if not self._crowded(case)}
        some = any(case.id not in ran for case in covered)
        undecided = "pass" not in found or found & {"inconclusive", "invalid", "error"}
        return bool(covered) if undecided or elsewhere or some else "fail" in found
