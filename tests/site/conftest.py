import json
import shutil
from pathlib import Path

import pytest

from harness.store import Store
from reports import render
from reports.site import publish
from tests.site import synthetic

SOME = synthetic.cases(4)
WRONG = SOME[1].id
SCRIPT = "print('still there')  # <b>\n"
RELEASES = ("0.19.2", "0.19.8", "0.1")
VERSIONS = {
    "format": 1,
    "package": "deepspeed",
    "started": "2026-11-29T10:00:00+00:00",
    "command": "plumbline versions x",
    "environment": {"packages": {"torch": "2.13.0"}},
    "releases": [{"version": v, "reason": "does not import" if v == "0.1" else "", "run": ""} for v in RELEASES],
    "findings": [
        {
            "finding": "planted_average",
            "title": "Twice",
            "cells": {"0.19.2": {"state": "right", "reason": ""}, "0.19.8": {"state": "wrong", "reason": ""}},
            "summary": "right until 0.19.2, wrong from 0.19.8",
        }
    ],
    "cases": [{"case": "a-b", "measure": "parity", "verdicts": {"0.19.2": "pass", "0.19.8": "fail"}, "reasons": {}}],
}


def short(store: Store, run: str | None, folder: Path) -> Path:
    """A report of two files and one line each: a real one takes a second."""
    (folder / "sections").mkdir()
    (folder / "sections" / "zero.html").write_text(f"<p>{run}</p>")
    (folder / "index.html").write_text(f"<p>{run}</p>")
    return folder / "index.html"


@pytest.fixture(autouse=True)
def short_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_report" not in request.fixturenames:
        monkeypatch.setattr(render, "write", short)


@pytest.fixture
def real_report() -> None:
    """Asked for by a test that needs the report as it is."""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, history.db, and its site. Three nights are of one machine, of which the last has a wrong result and a
    newer PyTorch; one is of another machine."""
    folder = tmp_path_factory.mktemp("made")
    store = Store.open(str(folder / "history.db"))
    synthetic.night(store, 0, SOME, synthetic.environment())
    synthetic.night(store, 1, SOME, synthetic.environment())
    synthetic.night(store, 2, SOME, synthetic.environment(cpu="Another CPU"))
    failing = {WRONG: "planted_average", SOME[2].id: ""}
    synthetic.night(store, 3, SOME[:3], synthetic.environment(torch="2.14.1"), failing=failing)
    table = folder / "versions.json"
    table.write_text(json.dumps(VERSIONS))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(render, "write", short)
        publish(store, folder / "site", scripts={"planted_average": SCRIPT}, versions=[table])
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    shutil.copy(made / "history.db", tmp_path)
    return Store.open(str(tmp_path / "history.db"))


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Path:
    """The folder of the published site."""
    return Path(shutil.copytree(made / "site", tmp_path / "site"))
