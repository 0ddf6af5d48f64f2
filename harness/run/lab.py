"""Measures and claims: run by the runner, judged, and handed to the recorder."""

import traceback
from typing import Any

from harness import catalog
from harness.run.oracle import no_run
from harness.run.recorder import Recorder
from harness.run.runner import Runner
from harness.spec import Case, Claim, Measurement, Topology, Workload


class Lab:
    def __init__(self, runner: Runner, recorder: Recorder) -> None:
        self.runner, self.recorder = runner, recorder

    def measure(self, name: str, case: Case) -> list[Measurement]:
        """Takes one of :data:`harness.measures.MEASURES`, and records its measurements; a resumed run returns those
        that it has."""
        if known := self.recorder.earlier.kept.get((name, case.id)):
            return known
        if reason := self.runner.obstacle(case):
            found = [no_run("skipped", reason)]
        else:
            found = self._taken(name, case)
        notes: dict[str, Any] = {}
        for rank in self.runner.known(case)[:1]:
            notes = {text: getattr(rank, text) for text in ("fallback", "products") if getattr(rank, text)}
        if shared := self.runner.shared_gpus(case.topology):
            notes["device_note"] = shared
        if attempts := self.recorder.earlier.attempts.get((name, case.id)):
            notes["attempts"] = attempts
        if len(counts := self.runner.launcher.counts(case.topology.world_size)) > 1:
            notes["nodes"] = f"{' + '.join(map(str, counts))} ranks on {len(counts)} nodes"
        named = [measurement.but(measure=name) for measurement in found]
        for rank in self.runner.known(case)[:1]:
            if rank.configuration:  # once for each measure: it is long
                named[0] = named[0].but(detail={**named[0].detail, "configuration": rank.configuration})
        return self.recorder.record(case, named, notes)

    def _taken(self, name: str, case: Case) -> list[Measurement]:
        """A measure that breaks is an error of its case, which the store and the report must show."""
        try:
            found: list[Measurement] = catalog.load(f"harness.measures.{name}:take")(self, case)
            return found or [no_run("error", f"the measure {name} found nothing")]
        except Exception:
            return [no_run("error", f"the measure {name} raised\n{traceback.format_exc()}")]

    def right(self, case: Case) -> bool:
        """Whether the case computes what the oracle does, and keeps the technique's laws."""
        if self.runner.obstacle(case) or self.runner.checked(case).problem:
            return False
        judged = self.recorder.judged.get(case.id, [])
        for name in ("parity", "memory", "traffic"):
            mine = [each for each in judged if each.measure == name]
            if not mine and (name != "traffic" or case.topology.world_size > 1):
                mine = self._taken(name, case)
            if any(each.verdict in ("fail", "error") for each in mine):
                return False
        return True

    def claim(self, topic: str, claim: Claim, cases: list[Case]) -> Measurement:
        """Checks a published figure against the measurements of these cases of its topic."""
        measurement: Measurement = catalog.load(claim.check)(self.recorder.records(cases))
        detail = {"text": claim.text, "source": claim.source, **measurement.detail}
        about = Case(topic, topic, "", Topology(), Workload())
        found = measurement.but(measure="claim", quantity=claim.name, detail=detail)
        return self.recorder.record(about, [found], {})[0]
