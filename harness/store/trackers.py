"""Copies a run to MLflow or Weights & Biases, without a network: one run there for one run here."""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.store.query import export
from harness.store.schema import StoreError
from harness.store.store import Store

PROJECT = "plumbline"
BATCH = 100  # MLflow takes up to 100 parameters at once, and more metrics
LONGEST = 250  # characters in a name of MLflow


def send(store: Store, run: str | None, tracker: str, folder: Path) -> str:
    """Copies ``run`` (None: the latest) to ``folder``, and returns what to do with it."""
    found = store.records(run)
    if not found:
        raise StoreError(f"{f'run {run}' if run else 'the latest run'} has no records to export")
    (about,) = store.runs(found[0]["run"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            table = Path(scratch) / "records.csv"
            export(store.frame(about["run"]), "csv", table)
            return TRACKERS[tracker](about, figures(found), table, folder.resolve())
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise StoreError(f"{tracker} is not installed ({reason}); pip install 'plumbline[{tracker}]'") from None
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {error.strerror}; give another folder") from None


def figures(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``case/measure.quantity`` → value, in the characters that both trackers take."""
    named = {f"{r['case']}/{r['measure']}.{r['quantity']}": r["value"] for r in records if r["value"] is not None}
    return {re.sub(r"[^\w./ -]", "_", name)[:LONGEST]: value for name, value in named.items()}


def flat(about: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as names with dots, and texts."""
    for name, value in about.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield re.sub(r"[^\w./ -]", "_", f"{prefix}{name}"), str(value)


def _mlflow(about: Mapping[str, Any], values: Mapping[str, float], table: Path, folder: Path) -> str:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    place = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=place)
    experiment = client.get_experiment_by_name(PROJECT)
    home = (
        experiment.experiment_id if experiment else client.create_experiment(PROJECT, (folder / "artifacts").as_uri())
    )
    if client.search_runs([home], filter_string=f"tags.`plumbline.run` = '{about['run']}'"):
        raise StoreError(f"run {about['run']} is already in {folder}; nothing was exported")
    started, ended = (_milliseconds(about[name]) for name in ("started", "finished"))
    name = client.create_run(home, start_time=started, run_name=about["run"]).info.run_id
    metrics = [Metric(key, value, ended or started, 0) for key, value in values.items()]
    params = [Param(key, text) for key, text in flat(about["environment"])]
    tags = [RunTag(f"plumbline.{key}", str(about[key])) for key in ("run", "command", "status")]
    for start in range(0, max(len(metrics), len(params)), BATCH):
        client.log_batch(name, metrics[start : start + BATCH], params[start : start + BATCH])
    client.log_batch(name, tags=tags)
    client.log_artifact(name, str(table))
    client.set_terminated(name, "FINISHED" if about["status"] == "finished" else "FAILED", ended)
    return f"mlflow ui --backend-store-uri {place}"


def _wandb(about: Mapping[str, Any], values: Mapping[str, float], table: Path, folder: Path) -> str:
    import pandas
    import wandb

    quiet = wandb.Settings(
        console="off", silent=True, disable_git=True, disable_code=True, x_disable_meta=True, x_disable_stats=True
    )
    run = wandb.init(
        project=PROJECT,
        id=about["run"],
        name=about["run"],
        dir=folder,
        mode="offline",
        config={**about["environment"], "command": about["command"], "status": about["status"]},
        settings=quiet,
    )
    run.summary.update(values)
    run.log({"records": wandb.Table(dataframe=pandas.read_csv(table, keep_default_na=False))})
    run.finish()
    return f"wandb sync {folder}/wandb/offline-run-*-{about['run']}"


def _milliseconds(time: str | None) -> int | None:
    return None if time is None else int(datetime.fromisoformat(time).timestamp() * 1000)


Tracker = Callable[[Mapping[str, Any], Mapping[str, float], Path, Path], str]
TRACKERS: Mapping[str, Tracker] = MappingProxyType({"mlflow": _mlflow, "wandb": _wandb})
