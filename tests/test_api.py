"""``import plumbline``: the records as a pandas frame."""

import tomllib
from pathlib import Path

import pytest
from setuptools.config.expand import find_packages

from harness.store import COLUMNS, Store, StoreError
from tests.store.examples import CASE, FINDING

ROOT = Path(__file__).parents[1]
HOME = ROOT / "harness" / "api"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.syspath_prepend(HOME)
    store = Store.open(str(tmp_path / "store.db"))
    for value in (1.0, 2.0):
        run = store.begin({"cpu": "x"}, "pytest")
        store.add(run, CASE, "cpu", [FINDING.but(value=value)])
        store.finish(run, "finished")
    return store


def test_the_records_of_all_runs_are_a_frame(store: Store) -> None:
    import plumbline

    found = plumbline.records(store.place)
    assert tuple(found.columns) == COLUMNS
    assert found["value"].tolist() == [1.0, 2.0]
    assert plumbline.records(store.place, None)["value"].tolist() == [2.0]
    assert set(COLUMNS) <= set(plumbline.records.__doc__.replace(",", " ").replace(";", " ").replace(":", " ").split())


def test_the_runs_are_a_frame(store: Store) -> None:
    import plumbline

    found = plumbline.runs(store.place)
    assert found["records"].tolist() == [1, 1]
    assert found["environment"].tolist() == [{"cpu": "x"}] * 2


def test_a_store_that_is_not_there_is_one_line(store: Store, tmp_path: Path) -> None:
    import plumbline

    with pytest.raises(StoreError, match="no such file"):
        plumbline.records(str(tmp_path / "none.db"))


def test_an_installation_has_the_package_once() -> None:
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    homes: dict[str, str] = {}
    found = find_packages(root_dir=ROOT, fill_package_dir=homes, **find)
    assert found.count("plumbline") == 1
    assert homes["plumbline"] == "harness/api/plumbline"
    assert not [name for name in found if name.startswith("harness.api")]
    assert "harness.store.migrations.versions" in found
