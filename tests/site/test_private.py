"""Nothing that leaves the machine says whose it is: every file of a site with a store full of private texts, and a
bundle."""

import getpass
import json
import socket
import zipfile
from pathlib import Path
from typing import Any

import pandas
import pytest

from harness.store import Store
from harness.store.schema import writing
from harness.store.tables import RECORDS, RUNS
from harness.submission import make
from reports.site import publish
from reports.site.source import NOT_FIGURES
from tests.site import synthetic
from tests.site.conftest import VERSIONS

HOST, USER = "gpu-node17", "jdoe"
PRIVATE = (HOST, USER, "s3cret", "10.0.3.7", "db.example.com", "/srv/", "/scratch/", "worker-9")
TEXT = (
    f"RuntimeError: {HOST} [10.0.3.7]:29500: node worker-9 was lost: cannot read /scratch/{USER}/w.bin, "
    f"postgresql://{USER}:s3cret@db.example.com/runs, https://x.org/?token=s3cret\n"
    f'  File "/srv/e/lib/python3.11/site-packages/torch/x.py", line 3, in f'
)
COMMAND = f"pytest /srv/plumbline/suites --hosts=worker-9 --store=postgresql://{USER}:s3cret@db.example.com/runs"


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """As an older Plumbline, or a program of one's own, may have filled it."""
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.setattr(getpass, "getuser", lambda: USER)
    store = Store.open(str(tmp_path / "history.db"))
    some = synthetic.cases(2)
    environment = synthetic.environment(note=TEXT, variables={"CUDA_HOME": f"/srv/{USER}/cuda"})
    synthetic.night(store, 0, some, environment, failing={some[1].id: ""}, command=COMMAND)
    with writing(store.engine) as connection:
        figures = RECORDS.update().where(RECORDS.c.measure.not_in(NOT_FIGURES))
        connection.execute(RECORDS.update().values(reason=TEXT))
        connection.execute(figures.values(verdict="fail", detail={"said": [TEXT], TEXT: 1}))
        connection.execute(RUNS.update().values(command=COMMAND))
    return store


def texts(file: Path) -> str:
    if file.suffix == ".parquet":
        return str(pandas.read_parquet(file).to_dict("records"))
    return file.read_text("utf-8")


def test_no_file_of_a_site_says_whose_it_is(private: Store, real_report: None, tmp_path: Path) -> None:
    table: dict[str, Any] = VERSIONS | {"command": COMMAND, "environment": {"note": TEXT}}
    (tmp_path / "versions.json").write_text(json.dumps(table))
    done = publish(private, tmp_path / "site", versions=[tmp_path / "versions.json"])
    assert done.notes == ()
    files = [file for file in (tmp_path / "site").rglob("*") if file.is_file()]
    shown = {file.relative_to(tmp_path / "site").as_posix(): texts(file) for file in files}
    kinds = {Path(name).suffix for name in shown}
    assert {".html", ".js", ".json", ".xml", ".csv", ".parquet"} <= kinds
    assert {(name, word) for name, text in shown.items() for word in PRIVATE if word in text} == set()
    for name, text in shown.items():  # what was there to be cleared is there: the check above looked at it
        if name.endswith(("records.csv", "records.parquet", "run.json", "feed.json")):
            assert "was lost" in text or "suites" in text, name
    assert any("site-packages/torch/x.py" in text for name, text in shown.items() if "/report/" in name)


def test_a_bundle_does_not_say_whose_it_is(private: Store, tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    bundle = make(private, synthetic.run_id(0), path)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "parts")
    shown = "".join(texts(file) for file in (tmp_path / "parts").iterdir())
    assert [word for word in PRIVATE if word in shown + str(bundle)] == []
    assert bundle.run["command"] == "pytest …/suites --hosts=*** --store=postgresql://***"
