"""What belongs to one series, and in which order."""

from harness.history.series import series
from harness.store import Store
from tests.history.examples import BESIDE, BYTES, CASE, ELSEWHERE, GRADIENT, STATES, night, stepping


def test_a_series_has_the_figure_of_every_run_the_oldest_first(store: Store) -> None:
    late = night(store, STATES.but(value=2.0), started="2026-11-02T00:00:00")
    early = night(store, STATES.but(value=1.0), started="2026-11-01T00:00:00")
    (found,) = series(store)
    assert (found.case, found.topic, found.engine) == (CASE.id, "zero", "deepspeed")
    assert (found.measure, found.quantity, found.unit, found.direction) == ("memory", "states", "B", "equal")
    assert [(point.run, point.value, point.verdict) for point in found.points] == [
        (early, 1.0, "pass"),
        (late, 2.0, "pass"),
    ]


def test_runs_of_different_hardware_are_different_series(store: Store) -> None:
    night(store, STATES)
    night(store, STATES, environment=ELSEWHERE)
    night(store, STATES)
    assert sorted(len(found.points) for found in series(store)) == [1, 2]


def test_runs_of_unknown_hardware_are_no_series_together(store: Store) -> None:
    night(store, STATES, environment={})
    night(store, STATES, environment={})
    assert [len(found.points) for found in series(store)] == [1, 1]


def test_a_record_without_a_figure_is_no_point(store: Store) -> None:
    night(store, STATES.but(value=None, verdict="error"))
    assert series(store) == []


def test_a_timed_point_keeps_its_repetitions(store: Store) -> None:
    timed = stepping(0.2)
    night(store, timed)
    (found,) = series(store)
    assert found.points[0].samples == tuple(timed.detail["samples"])


def test_columns_select_series(store: Store) -> None:
    night(store, GRADIENT, BYTES, more={BESIDE: [GRADIENT]})
    assert len(series(store)) == 3
    assert [found.engine for found in series(store, engine="reference")] == ["reference"]
    assert {found.measure for found in series(store, engine="deepspeed")} == {"parity", "traffic"}
