"""The one stateful object of a session: it owns the worlds and runs every case once, however many tests look at it."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

from harness import catalog
from harness.ahead import Ahead
from harness.blocks import Block, BlockKey, block_key, judge_block, run_block, world_of
from harness.judge import law as law_judge
from harness.launch.base import Launcher
from harness.launch.outcome import Done, Job, Outcome
from harness.meter.host import FOREIGN, CpuWatch
from harness.oracle import TASKS, Oracles, no_run, tensors, trouble, update
from harness.spec import Card, Case, Claim, Finding, Topology, Workload
from harness.spec.requires import missing
from harness.waivers import Waiver

TIMELINES = 3  # worlds at most that one schedule is watched in
LEAN = 1.05  # a reference that peaks above this × the leanest engine is a toy


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
        self.universe = [case.id for case in cases]  # every case there is, also those not selected
        self.cores = len(os.sched_getaffinity(0))
        self.timed: list[Case] = []  # the cases of this session whose throughput is asked for
        self._checked: dict[str, Checked] = {}
        self._ahead = Ahead(self._check)
        self._oracles = Oracles(launcher, 4 * timeout)
        self._references: dict[tuple[Any, ...], Future[Any]] = {}  # that are expected, by the oracles' keys
        self._lock = Lock()
        self._blocks: dict[BlockKey, Block] = {}
        self.judged: dict[str, list[Finding]] = {}

    def expect(self, cases: Sequence[Case], parity: bool) -> None:
        """The checked runs that will be asked for, in this order; on CPU ranks they are begun ahead. ``parity``: so
        are the oracles that will judge them."""
        if self.launcher.device == "cpu":
            self._ahead = Ahead(self._check_and_expect_oracle if parity else self._check, cases)

    def close(self) -> None:
        self._ahead.close()
        self.launcher.close()

    # What a case needs to run

    def card(self, case: Case) -> Card:
        return self.cards[case.topic]

    def obstacle(self, case: Case) -> str:
        """Why this case cannot run here, or an empty string; decided without importing the engine."""
        if case.topology.world_size > self.capacity:
            return f"{case.topology} needs {case.topology.world_size} ranks; this run has {self.capacity} (--ranks)"
        engine = self.card(case).engines[case.engine]
        return missing(engine, self.launcher.device == "cuda") or case.workload.check(case.topology)

    def _arguments(self, case: Case) -> dict[str, Any]:
        card = self.card(case)
        return {
            "build": card.engines[case.engine].build,
            "variant": dict(card.variants[case.variant]),
            "workload": case.workload,
            "topology": case.topology,
        }

    def _source(self, case: Case) -> tuple[str, dict[str, str]]:
        """Which kind of job, and where its batches or inputs come from."""
        problem = catalog.problem(self.card(case))
        return ("function", {"problem": problem}) if problem else ("trainer", {"data": catalog.DATA})

    def run(self, case: Case, job: Job) -> tuple[Outcome, ...]:
        """One job in a fresh world of the case's engine."""
        world = world_of(self.launcher, case, self.card(case))
        try:
            return world.run(job, self.timeout)
        finally:
            world.close()

    # Checked runs

    def checked(self, case: Case) -> Checked:
        """The case's checked run; it happens once."""
        if case.id not in self._checked:
            self._checked[case.id] = self._ahead(case)
        return self._checked[case.id]

    def _taken(self, case: Case) -> Checked:
        """The checked run with its tensors, of which only the figures are kept: a thousand cases' would take gigabytes.
        Asked again, the case runs again."""
        found = self.checked(case)
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

    def _reference(self, case: Case) -> Any:
        card = self.card(case)
        expected = self._references.get(self._oracles.key(case, card))
        return expected.result() if expected else self._oracles.reference(case, card)

    def _check(self, case: Case) -> Checked:
        if reason := self.obstacle(case):
            return Checked(problem=no_run("skipped", reason))
        kind, source = self._source(case)
        outcomes = self.run(case, Job(f"{TASKS}:checked_{kind}", self._arguments(case) | source))
        problem = trouble(outcomes)
        if problem:
            return Checked(problem=problem)
        ranks = [outcome.value for outcome in outcomes if isinstance(outcome, Done)]
        return Checked(ranks=tuple(ranks))

    def _conclude(self, case: Case, findings: Sequence[Finding]) -> list[Finding]:
        concluded = []
        for finding in findings:
            detail = dict(finding.detail)
            for waiver in self.waivers:
                if finding.verdict == "fail" and not waiver.expired and waiver.about(case.id, finding):
                    detail["waiver"] = f"{waiver.reason} ({waiver.versions}, until {waiver.expires})"
            fallback = next((rank.get("fallback") for rank in self._ranks(case)), "")
            if fallback:
                detail["fallback"] = fallback
            concluded.append(finding.but(detail=detail))
        self._record(case, concluded)
        self.judged.setdefault(case.id, []).extend(concluded)
        return concluded

    def _ranks(self, case: Case) -> tuple[Mapping[str, Any], ...]:
        return self._checked[case.id].ranks if case.id in self._checked else ()

    # Measures

    def parity(self, case: Case) -> list[Finding]:
        """Gradients, updates and losses (or outputs) against the float64 oracle, in noise floors."""
        checked = self._taken(case)
        if checked.problem:
            return self._conclude(case, [checked.problem.but(measure="parity")])
        from harness.judge import parity  # torch, which collection does without

        reference = self._reference(case)
        if isinstance(reference, Finding):
            return self._conclude(case, [reference.but(measure="parity")])
        found = tensors(checked.ranks[0]["tensors"])
        losses = _mean_losses([rank["losses"] for rank in checked.ranks])
        if "parameters" in found:
            found["update"] = update(found.pop("parameters"), self._oracles.initial(case.workload))
        whole = {kind: not (kind == "update" and case.workload.optimizer == "adamw") for kind in found}
        return self._conclude(case, parity.judge(found, losses, reference, case.topology.world_size, whole))

    def memory(self, case: Case) -> list[Finding]:
        """Model states against the law, and the peak of a step against the leanest engine."""
        checked = self.checked(case)
        if checked.problem:
            return self._conclude(case, [checked.problem.but(measure="memory")])
        held = "states" if "states" in checked.ranks[0] else "saved"
        padding = float(checked.ranks[0]["padding"]) * case.workload.element_size
        most = max(checked.ranks, key=lambda rank: float(rank[held]))
        findings = [self._against_law(case, "memory", held, float(most[held]), padding if held == "states" else 0.0)]
        findings[0] = findings[0].but(detail={**findings[0].detail, "meter": most["meter"]})
        if "activations" in most:
            kept = max(float(rank["activations"]) for rank in checked.ranks)
            findings.append(self._against_law(case, "memory", "activations", kept))
        return self._conclude(case, [*findings, self._peak(case)])

    def _peak(self, case: Case) -> Finding:
        mine = _peak(self.checked(case).ranks)
        detail: dict[str, Any] = {"meter": self.checked(case).ranks[0]["meter"]}
        text, verdict, bound = f"{mine / 2**20:.2f} MiB at most in a step", "pass", None
        if case.engine == "reference":
            others = {peer.engine: _peak(self.checked(peer).ranks) for peer in self._peers(case)}
            others = {engine: peak for engine, peak in others.items() if not math.isnan(peak)}
            if others:
                leanest = min(others, key=lambda engine: others[engine])
                bound = LEAN * others[leanest]
                verdict = "pass" if mine <= bound else "fail"
                text += f"; {mine / others[leanest]:.3f} × the leanest engine, {leanest}; at most {LEAN:g} is asked"
        return Finding("memory", "peak", mine, "B", verdict, text, bound=bound, detail=detail)

    def _peers(self, case: Case) -> list[Case]:
        """The same work by the other engines of this session that can run here."""
        return [
            peer
            for peer in self.cases
            if (peer.topic, peer.variant, peer.topology, peer.workload)
            == (case.topic, case.variant, case.topology, case.workload)
            and peer.engine != case.engine
            and not self.obstacle(peer)
        ]

    def traffic(self, case: Case) -> list[Finding]:
        """Bytes that a rank asks its collectives to send in a step, against the law."""
        checked = self.checked(case)
        if checked.problem:
            return self._conclude(case, [checked.problem.but(measure="traffic")])
        if unmetered := checked.ranks[0].get("unmetered"):
            return self._conclude(case, [no_run("skipped", unmetered).but(measure="traffic")])
        totals = [sum(op["bytes"] for op in rank["traffic"].values()) for rank in checked.ranks]
        most = max(range(len(totals)), key=lambda rank: totals[rank])
        by_op = checked.ranks[most]["traffic"]
        finding = self._against_law(case, "traffic", "bytes", totals[most], 0.0, checked.ranks[most]["padding"])
        control = sum(op["control"] for op in by_op.values())
        detail = {**finding.detail, "by_op": by_op, "control": control}
        reason = finding.reason + (f"; {control:,.0f} B of losses, norms and flags besides" if control else "")
        findings = [finding.but(detail=detail, reason=reason)]
        size = self.card(case).variants[case.variant].get("group")
        if size:
            across = max(_across(rank["groups"], int(size)) for rank in checked.ranks)
            padded = checked.ranks[most]["padding"]
            findings.append(self._against_law(case, "traffic", "across_groups", across, 0.0, padded))
        return self._conclude(case, findings)

    def _against_law(
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

    def quality(self, case: Case) -> list[Finding]:
        """The learning curve of the workload's steps, against the oracle's and its noise floor."""
        if reason := self.obstacle(case):
            return self._conclude(case, [no_run("skipped", reason).but(measure="quality")])
        from harness.judge import curve

        outcomes = self.run(case, Job(f"{TASKS}:curve", self._arguments(case) | {"data": catalog.DATA}))
        problem = trouble(outcomes)
        if problem:
            return self._conclude(case, [problem.but(measure="quality")])
        losses = _mean_losses([outcome.value for outcome in outcomes if isinstance(outcome, Done)])
        oracle = self._oracles.curves(case, self.card(case))
        if isinstance(oracle, Finding):
            return self._conclude(case, [oracle.but(measure="quality")])
        return self._conclude(case, [curve.judge(losses, *oracle)])

    def throughput(self, case: Case) -> list[Finding]:
        """Step times from the interleaved rounds of the case's block; the block runs once for all its cases."""
        if reason := self.obstacle(case):
            return self._conclude(case, [no_run("skipped", reason).but(measure="throughput")])
        key = block_key(case)
        if key not in self._blocks:
            members = [c for c in self.timed if block_key(c) == key and not self.obstacle(c)]
            prepare = {c.id: self._prepare(c) for c in members}
            self._ahead.rest()
            self._blocks[key] = run_block(self.launcher, members, prepare, self.card(case), self.timeout)
        peers = (member for member in self._blocks[key].cases if member.variant == case.variant)
        wrong = {peer.engine for peer in peers if self._is_wrong(peer)}
        return self._conclude(case, judge_block(self._blocks[key], case, wrong))

    def _is_wrong(self, case: Case) -> bool:
        """Whether it computes something else: parity failed here, or is known to."""
        judged = any(f.measure == "parity" and f.verdict == "fail" for f in self.judged.get(case.id, []))
        return judged or any(w.measure == "parity" and w.matches(case.id) for w in self.waivers)

    def timeline(self, case: Case) -> list[Finding]:
        """What the ranks of a schedule did when: idle time and micro-batches in flight, against the laws."""
        if reason := self.obstacle(case):
            return self._conclude(case, [no_run("skipped", reason).but(measure="timeline")])
        from harness.judge import timeline

        self._ahead.rest()
        watch, rounds, findings = CpuWatch(), [], []
        job = Job(f"{TASKS}:timeline", self._arguments(case) | {"data": catalog.DATA, "cores": self.cores})
        card, laws = self.card(case), {law.quantity: law for law in self.card(case).laws if law.measure == "timeline"}
        for _ in range(TIMELINES):
            outcomes = self.run(case, job)
            if problem := trouble(outcomes):
                return self._conclude(case, [problem.but(measure="timeline")])
            ranks = [outcome.value for outcome in outcomes if isinstance(outcome, Done)]
            rounds += [[rank[index] for rank in ranks] for index in range(len(ranks[0]))]
            options = {**card.variants[case.variant], "times": timeline.means(timeline.times(rounds))}
            promised = {
                name: catalog.load(law.formula)(case.workload, case.topology, **options) for name, law in laws.items()
            }
            findings = timeline.judge(rounds, self.cores, promised, laws, watch.foreign() > FOREIGN)
            if not timeline.unequal(findings):
                break
        return self._conclude(case, findings)

    def _prepare(self, case: Case) -> Job:
        kind, source = self._source(case)
        return Job(f"{TASKS}:prepare_{kind}", self._arguments(case) | source)

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
        """Whether something failed that this waiver covers. A session of some of the cases cannot tell: for it, the
        waiver need only match a case that there is."""
        looked = [
            finding
            for case, findings in self.judged.items()
            for finding in findings
            if waiver.about(case, finding) and finding.verdict in ("pass", "fail")
        ]
        if not looked or len(self.cases) < len(self.universe):
            return any(waiver.matches(case) for case in self.universe)
        return any(finding.verdict == "fail" for finding in looked)


def _across(groups: Mapping[tuple[int, ...], float], size: int) -> float:
    """Bytes of collectives among ranks that do not all lie in one group of ``size`` neighbours, say a node."""
    return sum(sent for ranks, sent in groups.items() if len({rank // size for rank in ranks}) > 1)


def _peak(ranks: Sequence[Mapping[str, Any]]) -> float:
    return max((float(rank["peak"]) for rank in ranks), default=math.nan)


def _mean_losses(ranks: Sequence[Sequence[float]]) -> list[float]:
    """Each rank reports its share's mean; shares are equal, so the mean over ranks is the global batch's."""
    return [math.fsum(step) / len(step) for step in zip(*ranks, strict=True)]
