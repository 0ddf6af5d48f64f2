"""A run in MLflow and in Weights & Biases, with the real libraries where they are installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli
from harness.commands.export import TRACKERS as OFFERED
from harness.store import Store, StoreError
from harness.store.trackers import TRACKERS, figures, send
from tests.store.examples import CASE, FINDING

NAME = f"{CASE.id}/memory.peak"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path / "store.db"))
    run = store.begin({"cpu": "x", "packages": {"torch": "2.13.0"}, "gpus": []}, "pytest suites/")
    store.add(run, CASE, "cpu", [FINDING, FINDING.but(quantity="a%b", value=None, verdict="error")])
    store.finish(run, "finished")
    return store


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own
def test_mlflow_shows_the_run_with_its_figures_environment_and_records(store: Store, tmp_path: Path) -> None:
    client = pytest.importorskip("mlflow.tracking", reason="needs pip install 'plumbline[mlflow]'")
    told = send(store, None, "mlflow", tmp_path / "out")
    place = told.rpartition(" ")[2]
    assert told == f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/out/mlflow.db"
    there = client.MlflowClient(tracking_uri=place)
    (experiment,) = [each for each in there.search_experiments() if each.name == "plumbline"]
    (run,) = there.search_runs([experiment.experiment_id])
    (about,) = store.runs()
    assert run.info.run_name == about["run"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {NAME: FINDING.value}
    assert run.data.params == {"cpu": "x", "packages.torch": "2.13.0", "gpus": "[]"}
    assert run.data.tags["plumbline.command"] == "pytest suites/"
    (table,) = (tmp_path / "out" / "artifacts").rglob("records.csv")
    assert table.read_text().count("\n") == 3
    with pytest.raises(StoreError, match=r"run .* is already in .*out; nothing was exported"):
        send(store, None, "mlflow", tmp_path / "out")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own
def test_weights_and_biases_gets_the_run_offline(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs pip install 'plumbline[wandb]'")
    told = send(store, None, "wandb", tmp_path / "out")
    (about,) = store.runs()
    (folder,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    assert folder.match(Path(told.rpartition(" ")[2]).name)
    assert folder.name.endswith(about["run"])
    (log,) = folder.glob("*.wandb")
    content = log.read_bytes()
    for text in (NAME, "2.13.0", "pytest suites/"):
        assert text.encode() in content
    assert list(folder.rglob("*.table.json"))


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_that_is_not_installed_is_named_with_its_extra(
    store: Store, tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [tracker, *(name for name in sys.modules if name.startswith(f"{tracker}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    arguments = ["export", "--to", tracker, "--store", str(tmp_path / "store.db"), "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == pytest.ExitCode.USAGE_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"plumbline: {tracker} is not installed (")
    assert line.endswith(f"; pip install 'plumbline[{tracker}]'")


def test_a_run_without_records_or_a_folder_that_is_a_file_is_one_line(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write to .*file: .*; give another folder"):
        send(store, None, "mlflow", tmp_path / "file")
    store.begin({}, "pytest")
    with pytest.raises(StoreError, match="the latest run has no records to export"):
        send(store, None, "mlflow", tmp_path / "out")


def test_the_command_offers_every_tracker_and_loads_none() -> None:
    assert tuple(TRACKERS) == OFFERED
    script = "import sys, harness.store.trackers; sys.exit(bool({'mlflow', 'wandb'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_names_of_figures_have_characters_that_both_trackers_take() -> None:
    record = {"case": "c", "measure": "m", "quantity": "p99 (µs) %", "value": 1.0}
    assert figures([record, {**record, "value": None}]) == {"c/m.p99 _µs_ _": 1.0}
