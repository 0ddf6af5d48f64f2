"""Operations of a step are counted where a law promises their number, and compared with the twin's."""

from dataclasses import replace

from harness.catalog import load
from harness.measures.flops import asked, operations, take
from harness.run.lab import Lab
from harness.spec import Case, Occasion, Topology, Workload
from impls.acceleration import activation_checkpointing

CARD = activation_checkpointing.CARD
CASE = Case(CARD.name, "recompute_layers", "reference", Topology(), Workload())
OCCASION = Occasion(CASE, CARD, cores=1, timed=False, traced=False, judged=True)


def test_it_is_asked_where_a_law_promises_operations() -> None:
    assert asked(OCCASION)
    without = replace(CARD, laws=[law for law in CARD.laws if law.measure != "flops"])
    assert not asked(replace(OCCASION, card=without))
    assert not asked(replace(OCCASION, judged=False))


class Counted:
    """A runner whose cases count what their variant says."""

    def __init__(self, **counted: int) -> None:
        self.counted = counted

    def card(self, case: Case) -> object:
        return CARD

    def once(self, case: Case, target: str) -> list[int]:
        assert target == f"{operations.__module__}:{operations.__name__}"
        return [self.counted[case.variant] - 1, self.counted[case.variant]]


def verdicts(case: Case, **counted: int) -> dict[str, str]:
    return {found.quantity: found.verdict for found in take(Lab(Counted(**counted), None), case)}  # type: ignore[arg-type]


def test_the_rank_that_computes_most_is_judged_by_both_laws() -> None:
    laws = {law.quantity: law for law in CARD.laws if law.measure == "flops"}
    step = load(laws["step"].formula)(CASE.workload, CASE.topology, each=1)
    again = load(laws["recomputed"].formula)(CASE.workload, CASE.topology, each=1)
    right = {"recompute_layers": int(step), "no_recompute": int(step - again)}
    assert verdicts(CASE, **right) == {"step": "pass", "recomputed": "pass"}
    more = right | {"recompute_layers": int(step) + 2}
    assert verdicts(CASE, **more) == {"step": "fail", "recomputed": "fail"}
    less = right | {"recompute_layers": int(step) - 2}
    assert verdicts(CASE, **less) == {"step": "fail", "recomputed": "fail"}
    # An engine that stops a replay at the last tensor that is needed computes less.
    assert verdicts(replace(CASE, engine="torch"), **less) == {"step": "pass", "recomputed": "pass"}
    assert verdicts(replace(CASE, variant="no_recompute"), **right) == {"step": "pass"}
