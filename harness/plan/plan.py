"""The plan of a session: its cases and the measures of each, decided before anything starts."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from harness.measures import MEASURES
from harness.plan import depth
from harness.plan.cases import Request, at_depth, cards, every, measures
from harness.spec import Card, Case, Needs

Test = tuple[str, Case]  # a measure, and the case that it measures


@dataclass(frozen=True)
class Plan:
    """``every``: the cases at full depth; ``tests``: those that run, in the order of the cases."""

    request: Request
    cards: Mapping[str, Card]
    every: tuple[Case, ...]
    tests: tuple[Test, ...]

    @classmethod
    def of(cls, request: Request) -> "Plan":
        """Raises a ValueError that names anything unknown or unsuitable."""
        chosen = cards(request)
        cases = tuple(every(request, chosen))
        return cls(request, chosen, cases, _tests(request, chosen, cases))

    def at(self, name: str) -> "Plan":
        """The same at another depth."""
        request = replace(self.request, depth=name)
        return replace(self, request=request, tests=_tests(request, self.cards, self.every))

    def only(self, tests: Collection[Test]) -> "Plan":
        """The plan with only these of its tests, in the given order."""
        return replace(self, tests=tuple(tests))

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        return tuple(dict.fromkeys(case for _, case in self.tests))

    @cached_property
    def timed(self) -> tuple[Case, ...]:
        """The cases whose steps are timed, which are peers."""
        return tuple(dict.fromkeys(case for measure, case in self.tests if measure in ("throughput", "bottleneck")))

    @cached_property
    def checked(self) -> tuple[Case, ...]:
        """The cases whose checked run is measured, in this order."""
        needs = (Needs.ORACLE, Needs.CHECKED)
        return tuple(dict.fromkeys(case for measure, case in self.tests if MEASURES[measure].NEEDS in needs))

    @cached_property
    def oracles(self) -> bool:
        """Whether any case is compared with an oracle."""
        return any(MEASURES[measure].NEEDS is Needs.ORACLE for measure, _ in self.tests)

    @property
    def minutes(self) -> float:
        """The estimated duration in minutes."""
        return depth.minutes(self.by_case(), self.request.cores)

    def by_case(self) -> dict[Case, list[str]]:
        found: dict[Case, list[str]] = {case: [] for case in self.cases}
        for measure, case in self.tests:
            found[case].append(measure)
        return found

    def lines(self) -> Iterator[str]:
        """One line per case, then the total."""
        for case, names in self.by_case().items():
            yield f"{case.id:<60} {', '.join(names)}"
        yield f"{len(self.cases):,} cases, {len(self.tests):,} tests, about {self.minutes:.0f} min"


def _tests(request: Request, chosen: Mapping[str, Card], cases: tuple[Case, ...]) -> tuple[Test, ...]:
    return tuple(
        (measure, case)
        for case in at_depth(list(cases), request, dict(chosen))
        for measure in measures(case, request, chosen[case.topic])
    )
