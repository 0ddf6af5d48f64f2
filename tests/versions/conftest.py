"""A package index without a network, a finding of its package, and a cache of their own."""

from pathlib import Path

import pytest

from harness import findings
from tests.versions.wheels import FINDING, PACKAGE, SCRIPT


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The index's folder, empty; pip asks no other one."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


@pytest.fixture
def finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a single finding, ``faultlib_factor``, with a script."""
    folder = tmp_path / "findings"
    folder.mkdir()
    (folder / f"{PACKAGE}_factor.toml").write_text(FINDING)
    (folder / f"{PACKAGE}_factor.py").write_text(SCRIPT)
    read, path = findings.read, findings.script
    monkeypatch.setattr(findings, "read", lambda: read(folder))
    monkeypatch.setattr(findings, "script", lambda finding: path(finding, folder))
    return folder
