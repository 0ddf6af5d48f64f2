"""The right answers and their resolution: the float64 oracle, and the noise floor of each precision."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from harness import catalog
from harness.launch.base import Launcher
from harness.launch.outcome import Done, Job, Outcome, Unsupported, describe, failures
from harness.run import heap
from harness.spec import Card, Case, Functions, Measurement, Topology, Trainers, Workload
from harness.spec.run import COMPARED, MOST

TASKS = "harness.launch.plain"

WEIGHTS = f"parameters {COMPARED}"
# Kind in a checked run → kind in a judgement.
KINDS = {
    "gradient 1": "gradient",
    **{f"gradient {step}": f"gradient at step {step}" for step in range(2, MOST + 1)},
    "merged": "merged",
    "unmerged": "unmerged",
}
KEPT = 20  # references: a topic's works, and those that it shares with others; each takes up to 0.1 GB
HERE: Mapping[str, str] = MappingProxyType({})
EXACT: dict[str, Any] = {"workload": {"dtype": "fp64", "micro_batches": 1}}
# Honest ways to compute the same function: their differences are the noise floor.
ENSEMBLE: tuple[dict[str, Any], ...] = (
    {},
    {"math": True},
    {"permute": True},
    {"workload": {"micro_batches": 2}},
    {"workload": {"micro_batches": 4}},
    {"permute": True, "math": True, "workload": {"micro_batches": 2}},
    {"reordered": {"seed": 1}},
    {"reordered": {"seed": 2}},
)
# Another machine: the smallest instruction set, and more threads.
ELSEWHERE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "2"}
MOVED: tuple[dict[str, Any], ...] = ({}, {"reordered": {"seed": 9}})
# A single number's error is a single draw, and members that round to one grid have similar errors. Other draws of the
# model show the spread of a slope or a loss.
DRAWS = (1, 2, 3, 4, 5)
FUNCTION_ENSEMBLE: tuple[dict[str, Any], ...] = (
    {},
    *({"reordered": {"seed": seed, "fused": seed % 2 == 0}} for seed in range(1, 9)),
)
CURVE_ENSEMBLE: tuple[dict[str, Any], ...] = ({}, {"permute": True}, {"workload": {"micro_batches": 2}})


Ensemble = Sequence[Mapping[str, Any]]


class Run(NamedTuple):
    """Kind → name → tensor; the losses; the resolution of float64 by kind; the outputs that must be equal; and the
    observed values by step."""

    kinds: Mapping[str, Mapping[str, Any]]
    losses: Sequence[float] = ()
    units: Mapping[str, Mapping[str, float]] = MappingProxyType({})
    exact: Mapping[str, Any] = MappingProxyType({})
    observed: Sequence[Mapping[str, float]] = ()


class NoOracle(Exception):
    """The plain model did not run; the measurement gives the reason."""

    def __init__(self, measurement: Measurement) -> None:
        super().__init__(measurement.reason)
        self.measurement = measurement


class Oracles:
    """Runs the plain model once for each workload, in a world of one rank, and caches the results.

    A method returns a :class:`Measurement` instead if the plain model did not run.
    """

    def __init__(self, launcher: Launcher, timeout: float) -> None:
        self.launcher, self.timeout = launcher, timeout
        self._known: dict[tuple[Any, ...], Any] = {}
        self._latest: dict[tuple[Any, ...], Any] = {}  # references, the one used last at the end

    def _plain(self, module: str, task: str, arguments: dict[str, Any], settings: Mapping[str, str] = HERE) -> Any:
        world = self.launcher.world(1, "reference", module, settings)
        try:
            outcomes = world.run(Job(f"{TASKS}:{task}", arguments), self.timeout)
        finally:
            world.close()
        problem = trouble(outcomes)
        if problem:
            raise NoOracle(problem.but(reason=f"the oracle did not run: {problem.reason}"))
        (done,) = outcomes
        assert isinstance(done, Done)
        return done.value

    def key(self, case: Case, card: Card) -> tuple[Any, ...]:
        """The key of a reference: the dense model or formula, its options, and the work."""
        contract, variant = card.contract, dict(card.variants[case.variant])
        if isinstance(contract, Functions):
            return contract, *catalog.telling(contract, variant).items(), case.workload
        plain, options, work = self.start(case, card)
        return plain, *options.items(), work

    def start(self, case: Case, card: Card) -> tuple[Trainers, dict[str, Any], Workload]:
        """The modules of a Trainer's dense model and data, the model's options, and the work."""
        assert isinstance(card.contract, Trainers)
        plain, options = catalog.dense(card.contract, case.workload, case.topology, card.variants[case.variant])
        return replace(card.contract, plain=plain), options, case.workload

    def reference(self, case: Case, card: Card) -> Any:
        """The :class:`harness.judge.parity.Reference` for the case's work and precision, with its tensors: only the
        latest are kept."""
        key = self.key(case, card)
        found = self._latest.pop(key, None)
        if found is None:
            contract, *options, work = key
            function = isinstance(contract, Functions)
            run = partial(self._outputs if function else self._trained, contract, dict(options))
            try:
                found = self._judged_by(run, work, FUNCTION_ENSEMBLE if function else ENSEMBLE)
            except NoOracle as reason:
                found = reason.measurement
            heap.release()  # an ensemble's results, which are judged
        self._latest[key] = found
        for oldest in list(self._latest)[:-KEPT]:
            self._latest.pop(oldest, None)
        return found

    def _judged_by(self, run: Callable[..., list[Run]], work: Workload, ensemble: Ensemble) -> Any:
        """Builds the reference from the results of ``run``: float64 first, then each member of an ensemble."""
        from harness.judge import parity  # imports torch, which collection does not need

        runs = run(work, ensemble)
        moved = run(work, MOVED, ELSEWHERE) if self.launcher.device == "cpu" else []
        draws = [run(work.with_(seed=work.seed + draw), ({},)) for draw in DRAWS]
        exact = runs[0]
        # Another machine draws weights that differ in a last place here and there, so it has its own oracle.
        pairs = [(run, truth) for truth, *honest in filter(None, (runs, moved)) for run in honest]
        floors = parity.floors([(run.kinds, truth.kinds) for run, truth in pairs])
        for other, rounded in draws:
            floors = parity.raised(floors, rounded.kinds, other.kinds)
            pairs.append((rounded, other))
        losses = loss_floor([(run.losses, truth.losses) for run, truth in pairs])
        seen = observed_floor([(run.observed, truth.observed) for run, truth in pairs])
        for kind, unit in exact.units.items():
            floors[kind] = parity.at_least(floors[kind], unit)
        oracle = parity.Oracle(exact.kinds, exact.losses, exact.exact, exact.observed)
        return parity.Reference(oracle, floors, losses, seen)

    def _trained(
        self,
        contract: Trainers,
        options: dict[str, Any],
        work: Workload,
        ensemble: Ensemble,
        settings: Mapping[str, str] = HERE,
    ) -> list[Run]:
        from harness.judge import parity

        members = _members((EXACT, *ensemble), work)
        runs = self._plain(contract.plain, "members", self._work(contract, options, work, members), settings)
        found = []
        for run in runs:
            kinds = trained(run.tensors, self.initial(contract, options, work))
            after = tensors({"weights": run.tensors[WEIGHTS]})["weights"]
            units = {"update": parity.unit(after, kinds["update"])}
            found.append(Run(kinds, run.losses, units, observed=run.observed))
        return found

    def _work(
        self, contract: Trainers, options: Mapping[str, Any], work: Workload, members: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        modules = {"plain": contract.plain, "data": contract.data}
        return modules | {"ensemble": members, "options": options, "workload": work, "topology": Topology()}

    def _outputs(
        self,
        contract: Functions,
        variant: dict[str, Any],
        work: Workload,
        ensemble: Ensemble,
        settings: Mapping[str, str] = HERE,
    ) -> list[Run]:
        arguments = {"problem": contract.problem, "exact": contract.exact, "variant": variant, "workload": work}
        members = self._plain(contract.problem, "function_members", arguments | {"ensemble": list(ensemble)}, settings)
        return [Run(tensors(run.tensors), exact=run.exact) for run in members]

    def curves(self, case: Case, card: Card) -> Any:
        """The float64 model's learning curve, and its noise floor at every step in the case's precision."""
        contract, options, work = self.start(case, card)
        key = ("curve", contract, *options.items(), work)
        if key not in self._known:
            members = _members(({"workload": {"dtype": "fp64"}}, *CURVE_ENSEMBLE), work)
            try:
                arguments = self._work(contract, options, work, members)
                exact, *honest = self._plain(contract.plain, "curves", arguments)
                self._known[key] = exact, loss_floor([(run, exact) for run in honest])
            except NoOracle as reason:
                self._known[key] = reason.measurement
        return self._known[key]

    def initial(self, contract: Trainers, options: Mapping[str, Any], work: Workload) -> Mapping[str, Any]:
        """The initial weights of every engine."""
        key = ("initial", contract.plain, *options.items(), work.model, work.seed, work.weights)
        if key not in self._known:
            self._known[key] = dict(catalog.load(f"{contract.plain}:initial")(work, **options))
        weights: Mapping[str, Any] = self._known[key]
        return weights


def trouble(outcomes: Sequence[Outcome]) -> Measurement | None:
    """The measurement for a run without figures, or None if every rank is done."""
    if failures(outcomes):
        return no_run("error", describe(outcomes))
    for outcome in outcomes:
        if isinstance(outcome, Unsupported):
            return no_run("skipped", outcome.reason)
    return None


def no_run(verdict: str, reason: str) -> Measurement:
    """A measurement without a figure; the caller adds the measure's name."""
    return Measurement("parity", "run", None, "", verdict, reason)


def tensors(kept: Mapping[str, bytes]) -> dict[str, Mapping[str, Any]]:
    """Converts the bytes that a rank sent to tensors."""
    import torch

    return {kind: torch.load(io.BytesIO(data)) for kind, data in kept.items()}


def trained(kept: Mapping[str, bytes], initial: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """A Trainer's kinds: the gradients of each step, the change of the weights up to the compared step, and the merged
    weights."""
    found = tensors({kind: data for kind, data in kept.items() if kind in KINDS or kind == WEIGHTS})
    found["update"] = update(found.pop(WEIGHTS), initial)
    return {KINDS.get(kind, kind): names for kind, names in found.items()}


def update(parameters: Mapping[str, Any], initial: Mapping[str, Any]) -> dict[str, Any]:
    """The change of the weights. A tensor whose name or shape the model does not have stays as it is, so that the judge
    names it."""
    found = {}
    for name, tensor in parameters.items():
        fits = name in initial and initial[name].shape == tensor.shape
        found[name] = tensor.double() - initial[name].double() if fits else tensor
    return found


def mean_losses(ranks: Sequence[Sequence[float]]) -> list[float]:
    """Each rank reports the mean of its share; shares are equal, so the mean over ranks is the global batch's mean."""
    return [math.fsum(step) / len(step) for step in zip(*ranks, strict=True)]


def loss_floor(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[float]:
    """The largest relative deviation of an honest run's loss from its oracle's, at each step."""
    off = [[abs(got / true - 1.0) for got, true in zip(*pair, strict=True)] for pair in pairs]
    return [max(step) for step in zip(*off, strict=True)]


def observed_floor(
    pairs: Sequence[tuple[Sequence[Mapping[str, float]], Sequence[Mapping[str, float]]]],
) -> dict[str, float]:
    """The largest relative deviation of an honest run from its oracle in any step, by observed value."""
    floor: dict[str, float] = {}
    for honest, exact in pairs:
        for got, true in zip(honest, exact, strict=True):
            for name, value in true.items():
                off = abs(got[name] - value) / abs(value) if value else abs(got[name])
                floor[name] = max(floor.get(name, 0.0), off)
    return floor


def _members(ensemble: Sequence[Mapping[str, Any]], work: Workload) -> list[Mapping[str, Any]]:
    """The members whose micro-batches divide the work."""
    divisors = (int(member.get("workload", {}).get("micro_batches", 1)) for member in ensemble)
    return [member for member, k in zip(ensemble, divisors, strict=True) if work.batch_size % k == 0]
