"""Every topic's planted faults, which its ``faults.py`` lists; a fault's name is a variant of its own in its case."""

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from harness import catalog
from harness.judge import timeline
from harness.run.lab import Lab
from harness.spec import Card, Case, Engine, Measurement, Span, Topology
from harness.spec.fault import Fault


@dataclass(frozen=True)
class Planted:
    """A fault and where it is: the broken engine is ``build``."""

    name: str
    topic: str
    build: str
    fault: Fault

    def put_into(self, card: Card) -> Card:
        """The card with the fault as a variant and an engine."""
        variants = {**card.variants, self.name: card.variants[self.fault.variant]}
        twin = card.twins.get(self.fault.variant)
        twins = {**card.twins, self.name: twin} if twin else card.twins
        return replace(card, variants=variants, twins=twins, engines={**card.engines, self.name: self.engine})

    @property
    def engine(self) -> Engine:
        """Its library is PyTorch, so that one fork server does for all faults: each takes a quarter of a gigabyte."""
        return Engine(self.build, requires=("torch",), variants=(self.name,))

    def case(self, dtype: str) -> Case:
        return Case(self.topic, self.name, self.name, Topology.parse(self.fault.topology), self.fault.work(dtype))

    def unbroken(self, dtype: str) -> Case:
        return replace(self.case(dtype), variant=self.fault.variant, engine="reference")

    def peer(self, dtype: str) -> Case:
        """The reference in the same setting."""
        return replace(self.case(dtype), engine="reference")

    def figures(self, measure: str, dtype: str) -> frozenset[str]:
        """Those that must fail; none if the measure is not looked at in this precision."""
        return frozenset(self.fault.finds.get(measure, {}).get(dtype, ()))


def judged(lab: Lab, planted: Planted, measure: str, dtype: str) -> dict[str, Measurement]:
    """The measurements on a reference with this fault, whose peer is the unbroken reference. The lab has ``BROKEN``."""
    lab.runner.peers = lambda case: [case, planted.peer(dtype)]  # type: ignore[method-assign]
    return {measurement.quantity: measurement for measurement in lab.measure(measure, planted.case(dtype))}


def fails(measurement: Measurement) -> bool:
    """A bubble is that of the order alone, each action as long as its kind: the rest of it is the machine's."""
    if measurement.quantity != "bubble":
        return measurement.verdict == "fail"
    return (
        timeline.bubble([[Span(*span) for span in spans] for spans in measurement.detail["ideal"]]) > measurement.bound
    )


def of(card: Card) -> list[Planted]:
    """A topic's faults; none if it has no ``faults.py``."""
    module = f"{catalog.folder(card)}.faults"
    if importlib.util.find_spec(module) is None:
        return []
    faults: Mapping[str, Fault] = catalog.load(f"{module}:FAULTS")
    return [Planted(name, card.name, f"{module}:{name}", fault) for name, fault in faults.items()]


def with_all(cards: Mapping[str, Card], faults: Iterable[Planted]) -> dict[str, Card]:
    """The cards with these faults."""
    found = dict(cards)
    for planted in faults:
        found[planted.topic] = planted.put_into(found[planted.topic])
    return found


CARDS = catalog.topics()
EVERY = [fault for card in CARDS.values() for fault in of(card)]
FAULTS = {fault.name: fault for fault in EVERY}
BROKEN = with_all(CARDS, EVERY)
