"""What is right, and how precisely it can be told: the float64 oracle and the noise floor of each precision."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness import catalog
from harness.launch.base import Launcher
from harness.launch.outcome import Done, Job, Outcome, Unsupported, describe, failures
from harness.spec import Card, Case, Finding, Topology, Workload

TASKS = "harness.launch.tasks"

EXACT: dict[str, Any] = {"workload": {"dtype": "fp64", "micro_batches": 1}}
# Honest ways to compute the same: what they differ by is the noise floor. More threads are not among them: of 42 pieces
# of work they changed a bit in three, and raised no floor.
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
# In low precision they round to one grid, and much alike. How far that throws a slope, other draws of the model tell.
DRAWS = (1, 2)
# A single number's error is a single draw: it takes more of them to know how large it may be.
FUNCTION_ENSEMBLE: tuple[dict[str, Any], ...] = (
    {},
    *({"reordered": {"seed": seed, "fused": seed % 2 == 0}} for seed in range(1, 9)),
)
CURVE_ENSEMBLE: tuple[dict[str, Any], ...] = ({}, {"permute": True}, {"workload": {"micro_batches": 2}})


class Oracles:
    """Runs the plain model once for each piece of work, in a world of one rank, and remembers what it gave.

    A method returns a :class:`Finding` instead where the plain model did not run.
    """

    def __init__(self, launcher: Launcher, timeout: float) -> None:
        self.launcher, self.timeout = launcher, timeout
        self._known: dict[tuple[Any, ...], Any] = {}

    def _plain(self, task: str, arguments: dict[str, Any]) -> Any:
        world = self.launcher.world(1, "reference", catalog.PLAIN.partition(":")[0])
        try:
            outcomes = world.run(Job(f"{TASKS}:{task}", arguments), self.timeout)
        finally:
            world.close()
        problem = trouble(outcomes)
        if problem:
            return problem.but(reason=f"the oracle did not run: {problem.reason}")
        return outcomes[0].value if isinstance(outcomes[0], Done) else None

    def key(self, case: Case, card: Card) -> tuple[Any, ...]:
        """What distinguishes the references: the dense model or formula, what it computes, and the work."""
        variant = dict(card.variants[case.variant])
        if problem := catalog.problem(card):
            return problem, *catalog.telling(card, variant).items(), case.workload
        plain, options = catalog.plain(card, case.workload, case.topology, variant)
        return plain, *options.items(), case.workload

    def reference(self, case: Case, card: Card) -> Any:
        """The :class:`harness.judge.parity.Reference` for the case's work and precision."""
        key = self.key(case, card)
        if key not in self._known:
            name, *options, work = key
            make = self._function if catalog.problem(card) else self._trainer
            self._known[key] = make(name, dict(options), work)
        return self._known[key]

    def _trainer(self, plain: str, options: dict[str, Any], work: Workload) -> Any:
        from harness.judge import parity  # torch, which collection does without

        runs = self._runs(plain, options, work, ENSEMBLE)
        if isinstance(runs, Finding):
            return runs
        losses, kinds = [run["losses"] for run in runs], [run["kinds"] for run in runs]
        floors = _floors(kinds)
        unit = parity.unit(tensors(runs[0]["tensors"])["parameters"], kinds[0]["update"])
        floors["update"] = parity.at_least(floors["update"], unit)
        for other in _draws(work):
            pair = self._runs(plain, options, other, ({},))
            if isinstance(pair, Finding):
                return pair
            _raise_slopes(floors, [run["kinds"] for run in pair])
        return parity.Reference(parity.Oracle(kinds[0], losses[0]), floors, loss_floor(losses[0], losses[1:]))

    def _runs(self, plain: str, options: dict[str, Any], work: Workload, ensemble: Sequence[Mapping[str, Any]]) -> Any:
        """What the checked runs gave, with the judge's ``kinds`` of tensors: in float64, then of each member."""
        members = _members((EXACT, *ensemble), options, work)
        arguments = {"plain": plain, "ensemble": members, "workload": work}
        runs = self._plain("members", arguments | {"topology": Topology(), "data": catalog.DATA})
        if isinstance(runs, Finding):
            return runs
        for run in runs:
            found = tensors(run["tensors"])
            change = update(found["parameters"], self.initial(work))
            run["kinds"] = {"gradient": found["gradient"], "update": change}
        return runs

    def _function(self, problem: str, variant: dict[str, Any], work: Workload) -> Any:
        from harness.judge import parity

        kinds = self._outputs(problem, variant, work, FUNCTION_ENSEMBLE)
        if isinstance(kinds, Finding):
            return kinds
        floors = _floors(kinds)
        for other in _draws(work):
            pair = self._outputs(problem, variant, other, ({},))
            if isinstance(pair, Finding):
                return pair
            _raise_slopes(floors, pair)
        return parity.Reference(parity.Oracle(kinds[0]), floors)

    def _outputs(
        self, problem: str, variant: dict[str, Any], work: Workload, ensemble: Sequence[Mapping[str, Any]]
    ) -> Any:
        """The judge's ``kinds`` of tensors: in float64, then of each member."""
        arguments = {"problem": problem, "variant": variant, "workload": work, "ensemble": list(ensemble)}
        runs = self._plain("function_members", arguments)
        return runs if isinstance(runs, Finding) else [tensors(run) for run in runs]

    def curves(self, case: Case, card: Card) -> Any:
        """The float64 model's learning curve, and its noise floor at every step in the case's precision."""
        plain, options = catalog.plain(card, case.workload, case.topology, card.variants[case.variant])
        key = ("curve", plain, *options.items(), case.workload)
        if key not in self._known:
            ensemble = _members(({"workload": {"dtype": "fp64"}}, *CURVE_ENSEMBLE), options, case.workload)
            arguments = {"plain": plain, "ensemble": ensemble, "workload": case.workload}
            found = self._plain("curves", arguments | {"topology": Topology(), "data": catalog.DATA})
            known = found if isinstance(found, Finding) else (found[0], loss_floor(found[0], found[1:]))
            self._known[key] = known
        return self._known[key]

    def initial(self, work: Workload) -> Mapping[str, Any]:
        """The weights that every engine starts from."""
        key = ("initial", work.model, work.seed, work.weights)
        if key not in self._known:
            self._known[key] = dict(catalog.load(catalog.INITIAL)(work))
        weights: Mapping[str, Any] = self._known[key]
        return weights


def trouble(outcomes: Sequence[Outcome]) -> Finding | None:
    """The finding that stands for a run without figures, or None if every rank is done."""
    if failures(outcomes):
        return no_run("error", describe(outcomes))
    for outcome in outcomes:
        if isinstance(outcome, Unsupported):
            return no_run("skipped", outcome.reason)
    return None


def no_run(verdict: str, reason: str) -> Finding:
    """A finding without a figure; whoever measures puts the measure's name on it."""
    return Finding("parity", "run", None, "", verdict, reason)


def tensors(kept: Mapping[str, bytes]) -> dict[str, Mapping[str, Any]]:
    """What a rank sent as bytes, as tensors again."""
    import torch

    return {kind: torch.load(io.BytesIO(data)) for kind, data in kept.items()}


def update(parameters: Mapping[str, Any], initial: Mapping[str, Any]) -> dict[str, Any]:
    """What the steps changed; a tensor that the model does not have like this stays as it is, for the judge to name."""
    found = {}
    for name, tensor in parameters.items():
        fits = name in initial and initial[name].shape == tensor.shape
        found[name] = tensor.double() - initial[name].double() if fits else tensor
    return found


def mean_losses(ranks: Sequence[Sequence[float]]) -> list[float]:
    """Each rank reports its share's mean; shares are equal, so the mean over ranks is the global batch's."""
    return [math.fsum(step) / len(step) for step in zip(*ranks, strict=True)]


def loss_floor(truth: Sequence[float], honest: Sequence[Sequence[float]]) -> list[float]:
    """The largest relative deviation from the oracle's loss at each step."""
    return [max(abs(run[step] / truth[step] - 1.0) for run in honest) for step in range(len(truth))]


def _floors(kinds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By kind, from what float64 gave and then each member."""
    from harness.judge import parity

    exact, *honest = kinds
    return {kind: parity.floor([parity.errors(run[kind], exact[kind]) for run in honest]) for kind in exact}


def _draws(work: Workload) -> list[Workload]:
    return [work.with_(seed=work.seed + draw) for draw in DRAWS] if work.element_size < 4 else []


def _raise_slopes(floors: dict[str, Any], pair: Sequence[Mapping[str, Any]]) -> None:
    """To those of another draw: what float64 gave, and the case's own precision."""
    from harness.judge import parity

    exact, rounded = pair
    for kind, limit in floors.items():
        slope = abs(parity.errors(rounded[kind], exact[kind]).slope)
        floors[kind] = replace(limit, slope=max(limit.slope, slope))


def _members(ensemble: Sequence[Mapping[str, Any]], options: Mapping[str, Any], work: Workload) -> list[dict[str, Any]]:
    """The members whose micro-batches divide the work, each with the options of its dense model besides."""
    divisors = (int(member.get("workload", {}).get("micro_batches", 1)) for member in ensemble)
    return [{**options, **m} for m, k in zip(ensemble, divisors, strict=True) if work.batch_size % k == 0]
