"""What the store promises, on SQLite and on PostgreSQL."""

import math
import multiprocessing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy
import pytest
from sqlalchemy import func, select, text

from harness.spec import Topology, Workload
from harness.store import COLUMNS, Store, StoreError, query, record
from harness.store.schema import reading
from harness.store.tables import RUNS
from tests.store.examples import CASE, FINDING, write_and_die, written


def test_a_record_comes_back_as_it_was_added(store: Store) -> None:
    run = store.begin({"cpu": "x"}, "pytest suites/")
    store.add(run, CASE, "cpu (2 ranks)", [FINDING])
    (record,) = store.records()
    recorded = datetime.fromisoformat(record.pop("recorded"))
    assert timedelta() <= datetime.now(UTC) - recorded < timedelta(minutes=1)
    assert record == {
        "run": run,
        "case": "zero3-deepspeed-dp2-fp32",
        "topic": "zero",
        "variant": "zero3",
        "engine": "deepspeed",
        "topology": "dp2",
        "workload": "tiny",
        "dtype": "fp32",
        "device": "cpu (2 ranks)",
        "measure": "memory",
        "quantity": "peak",
        "value": 0.1 + 0.2,
        "unit": "B",
        "law": 1e300,
        "bound": 5e-324,
        "verdict": "pass",
        "reason": "30% below the law",
        "direction": "lower",
        "detail": {"series": [1, 2.5, None], "kind": {"real": True}, "big": 2**62},
    }


def test_columns_keep_their_order(store: Store) -> None:
    (record,) = written(store, FINDING)
    assert (
        " ".join(record) == " ".join(COLUMNS) == "run case topic variant engine topology workload dtype device "
        "measure quantity value unit law bound verdict reason direction detail recorded"
    )


def test_a_measurement_without_figures_keeps_none(store: Store) -> None:
    (record,) = written(store, FINDING.but(value=None, law=None, bound=None, verdict="error", detail={}))
    assert (record["value"], record["law"], record["bound"], record["detail"]) == (None, None, None, {})


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf, numpy.float32("nan")])
def test_a_figure_that_is_not_finite_becomes_none_and_keeps_its_reason(store: Store, figure: float) -> None:
    measurement = FINDING.but(value=figure, law=figure, bound=figure, reason="loss is nan", detail={"at": [figure, 1]})
    (record,) = written(store, measurement)
    assert (record["value"], record["law"], record["bound"]) == (None, None, None)
    assert (record["reason"], record["detail"]) == ("loss is nan", {"at": [None, 1]})


def test_numpy_figures_are_stored_as_numbers(store: Store) -> None:
    detail = {"scalar": numpy.float64(0.5), "count": numpy.int64(3), "many": numpy.arange(2), "flag": numpy.bool_(True)}
    (record,) = written(store, FINDING.but(value=numpy.float64(0.25), detail={**detail, 7: (1, 2)}))
    assert record["value"] == 0.25
    assert record["detail"] == {"scalar": 0.5, "count": 3, "many": [0, 1], "flag": True, "7": [1, 2]}


def test_a_detail_that_json_cannot_hold_is_refused_by_name(store: Store) -> None:
    with pytest.raises(TypeError, match=r"a set cannot be stored: \{1\}; allowed: None, bool"):
        written(store, FINDING.but(detail={"x": {1}}))


def test_markup_quotes_and_other_scripts_are_kept_verbatim(store: Store) -> None:
    name = (
        "<script>alert('x')</script> & \"q\" %s :name {{ x }} \\n Straße 模型 🧪\r\n\t'; DROP TABLE plumbline_runs; --"
    )
    case = replace(CASE, topic=name, workload=Workload(name=name))
    (record,) = written(store, FINDING.but(reason=name, detail={name: name}), case=case, topic=name)
    assert (record["topic"], record["workload"], record["reason"]) == (name, name, name)
    assert record["detail"] == {name: name}


def test_text_that_a_database_cannot_hold_is_marked_and_kept(store: Store) -> None:
    (record,) = written(store, FINDING.but(reason="core\0dump \udcff", detail={"a\0": "\udcff"}))
    assert record["reason"] == "core\ufffddump \\udcff"
    assert record["detail"] == {"a\ufffd": "\\udcff"}


def test_the_latest_of_a_quantity_wins_even_where_a_filter_would_match_the_former(store: Store) -> None:
    run = store.begin({}, "pytest")
    store.add(run, CASE, "cpu", [FINDING.but(verdict="fail"), FINDING.but(quantity="other")])
    store.add(run, CASE, "cpu", [FINDING.but(value=2.0)])
    assert [(r["quantity"], r["value"]) for r in store.records(run)] == [("peak", 2.0), ("other", 0.1 + 0.2)]
    assert store.records(run, verdict="fail") == []
    assert store.runs()[0]["records"] == 2


def test_the_latest_run_is_read_unless_another_or_all_are_named(store: Store) -> None:
    assert store.records() == []
    first, second = (store.begin({}, "pytest") for _ in range(2))
    store.add(second, CASE, "cpu", [FINDING.but(value=2.0)])
    store.add(first, CASE, "cpu", [FINDING.but(value=1.0)])
    assert [r["value"] for r in store.records()] == [2.0]
    assert [r["value"] for r in store.records(first)] == [1.0]
    assert [r["value"] for r in store.records("*")] == [2.0, 1.0]


def test_records_are_chosen_by_columns(store: Store) -> None:
    run = store.begin({}, "pytest")
    other = replace(CASE, engine="megatron", topology=Topology(tp=2))
    for case in (CASE, other):
        store.add(run, case, "cpu", [FINDING, FINDING.but(measure="parity", law=None)])
    chosen = store.records(run, engine="megatron", measure="memory")
    assert [(r["case"], r["topology"], r["measure"]) for r in chosen] == [(other.id, "tp2", "memory")]
    assert len(store.records(run, law=None)) == 2
    assert [r["measure"] for r in store.records(case=CASE.id)] == ["memory", "parity"]


def test_an_unknown_column_or_run_gets_the_nearest_known_one(store: Store) -> None:
    run = store.begin({}, "pytest")
    with pytest.raises(StoreError, match=r"no column 'verdit' \(did you mean verdict\?\)"):
        store.records(verdit="fail")
    with pytest.raises(StoreError, match=rf"no run '{run[:-1]}' \(did you mean {run}\?\)"):
        store.records(run[:-1])


def test_runs_tell_their_command_status_times_environment_and_records(store: Store) -> None:
    first = store.begin({"gpus": ("H100",), "bad": math.nan}, "pytest suites/ -k 'zero'")
    store.add(first, CASE, "cpu", [FINDING, FINDING.but(quantity="other")])
    store.finish(first, "interrupted")
    second = store.begin({}, "pytest")
    newest, oldest = store.runs()
    assert (newest["run"], newest["status"], newest["finished"], newest["records"]) == (second, "running", None, 0)
    assert oldest.pop("started") < oldest.pop("finished") < newest["started"]
    assert oldest == {
        "run": first,
        "command": "pytest suites/ -k 'zero'",
        "status": "interrupted",
        "environment": {"gpus": ["H100"], "bad": None},
        "records": 2,
    }


def test_a_run_that_was_not_begun_can_be_neither_added_to_nor_finished(store: Store) -> None:
    for action in (lambda: store.add("nope", CASE, "cpu", [FINDING]), lambda: store.finish("nope", "failed")):
        with pytest.raises(StoreError, match=r"has no run 'nope'; Store\.begin"):
            action()
    run = store.begin({}, "pytest")
    with pytest.raises(ValueError, match="status 'done' is none of finished, interrupted, failed"):
        store.finish(run, "done")
    assert store.records("*") == []


def test_all_that_is_read_at_once_is_of_one_moment(store: Store) -> None:
    count = select(func.count()).select_from(RUNS)
    with reading(store.engine) as connection:
        before = connection.execute(count).scalar()
        store.begin({}, "pytest")
        assert connection.execute(count).scalar() == before == 0
    assert len(store.runs()) == 1


def test_no_measurement_is_no_record(store: Store) -> None:
    assert written(store) == []


def test_a_renamed_case_is_read_under_its_new_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = replace(CASE, variant="stage3"), CASE
    runs = [store.begin({}, "pytest") for _ in range(2)]
    store.add(runs[0], old, "cpu", [FINDING])
    store.add(runs[1], new, "cpu", [FINDING])
    assert len(store.records("*", case=new.id)) == 1
    monkeypatch.setattr(query, "ALIASES", {old.id: new.id})
    for name in (old.id, new.id):
        assert [(r["run"], r["case"]) for r in store.records("*", case=name)] == [(run, new.id) for run in runs]
    store.add(runs[1], old, "cpu", [FINDING.but(value=3.0)])
    assert [r["value"] for r in store.records()] == [3.0]


def test_an_alias_leads_to_an_id_that_is_itself_not_renamed() -> None:
    assert not set(record.ALIASES) & set(record.ALIASES.values())


def test_a_killed_session_keeps_what_it_measured(url: str) -> None:
    session = multiprocessing.get_context("spawn").Process(target=write_and_die, args=(url,))
    session.start()
    session.join(60)
    assert session.exitcode == -9
    store = Store.open(url, create=False)
    assert len(store.records()) == 1
    assert store.runs()[0]["status"] == "killed"
    assert len(written(store, FINDING)) == 1
    stored = "SELECT status FROM plumbline_runs ORDER BY started"  # the next run has written down what was told
    with store.engine.connect() as connection:
        assert connection.execute(text(stored)).scalars().all() == ["killed", "running"]
    assert [run["status"] for run in store.runs()] == ["running", "killed"]
