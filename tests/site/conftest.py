import json
from pathlib import Path

import pytest

from harness.store import Store
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


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three nights on one machine, of which the last has a wrong result and a newer PyTorch, and one on another."""
    store = Store.open(str(tmp_path / "history.db"))
    synthetic.night(store, 0, SOME, synthetic.environment())
    synthetic.night(store, 1, SOME, synthetic.environment())
    synthetic.night(store, 2, SOME, synthetic.environment(cpu="Another CPU"))
    failing = {WRONG: "planted_average", SOME[2].id: ""}
    synthetic.night(store, 3, SOME[:3], synthetic.environment(torch="2.14.1"), failing=failing)
    return store


@pytest.fixture
def site(store: Store, tmp_path: Path) -> Path:
    """The folder of the published site."""
    table = tmp_path / "versions.json"
    table.write_text(json.dumps(VERSIONS))
    publish(store, tmp_path / "site", scripts={"planted_average": SCRIPT}, versions=[table])
    return tmp_path / "site"
