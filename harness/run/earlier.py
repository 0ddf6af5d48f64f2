"""The part of a run that happened before it was resumed: its measurements stand in for measuring again."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.run.blocks import block_key
from harness.run.infrastructure import attempts, due, signature
from harness.spec import Case, Measurement

Key = tuple[str, str]  # measure, id of the case
FIELDS = ("measure", "quantity", "value", "unit", "verdict", "reason", "law", "bound", "direction", "detail")
ENDED = ("killed by SIGTERM", "killed by SIGINT", "killed by SIGHUP")  # a rank that the run's own end took with it


@dataclass(frozen=True)
class Earlier:
    """``kept``: the measurements by test; ``replaced``: the tests with records that are taken again nevertheless;
    ``attempts``: those among them that are tried again, with the failures so far."""

    kept: Mapping[Key, list[Measurement]] = field(default_factory=dict)
    replaced: frozenset[Key] = frozenset()
    attempts: Mapping[Key, list[dict[str, str]]] = field(default_factory=dict)


def earlier(
    records: Iterable[Mapping[str, Any]], tests: Sequence[tuple[str, Case]], quiet: Collection[str] = ()
) -> Earlier:
    """Sorts the tests of a resumed run by its ``records``; ``quiet``: the measures that need :data:`Needs.QUIET`.

    A measure's records are written together, so a test has all of them or none. Cases that are timed in turns are timed
    together again unless all of them were: times of different hours are not compared.
    """
    rows: dict[Key, list[Mapping[str, Any]]] = {(measure, case.id): [] for measure, case in tests}
    for record in records:
        if (key := (record["measure"], record["case"])) in rows:
            rows[key].append(record)
    again = {key: found for key, group in rows.items() if (found := [row for row in group if due(row)])}
    done = {key for key, group in rows.items() if group and key not in again and not any(map(_ended, group))}
    timed = [((measure, case.id), block_key(case)) for measure, case in tests if measure in quiet]
    broken = {block for key, block in timed if key not in done}
    done -= {key for key, block in timed if block in broken}
    return Earlier(
        {key: [_measurement(row) for row in rows[key]] for key in rows if key in done},
        frozenset(key for key in rows if rows[key] and key not in done),
        {key: [*attempts(found[0]), _attempt(found[0])] for key, found in again.items()},
    )


def _measurement(record: Mapping[str, Any]) -> Measurement:
    return Measurement(**{name: record[name] for name in FIELDS})


def _ended(record: Mapping[str, Any]) -> bool:
    return record["verdict"] == "error" and str(record["reason"]).startswith(ENDED)


def _attempt(record: Mapping[str, Any]) -> dict[str, str]:
    reason = str(record["reason"])
    return {"signature": signature(reason), "reason": reason.partition("\n")[0], "recorded": str(record["recorded"])}
