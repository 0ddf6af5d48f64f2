"""Puts a release into a folder of its own, over the present environment."""

import json
import os
import shutil
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from packaging.version import Version

from harness.versions import child

ROOT = Path(__file__).parents[2]  # of Plumbline
PARTIAL = ".partial-"
SITES = ("site-packages", "dist-packages")
BUILD = {"DS_BUILD_OPS": "0"}  # DeepSpeed's operators are compiled when they are used


class Unusable(Exception):
    """Why a release cannot be judged beside the present environment."""


@dataclass(frozen=True)
class Place:
    """A release on this machine: in ``folder``, a folder of packages, or the environment of its own ``python``."""

    package: str
    version: str
    folder: Path
    python: str

    @property
    def whole(self) -> bool:
        return self.python != sys.executable

    def alone(self) -> dict[str, str]:
        """The variables of a process that has this release first on its path, and none of the user's own paths."""
        return self._variables([])

    def beside_plumbline(self) -> dict[str, str]:
        """The variables of the suites' process: behind the release come this Plumbline and the user's own paths."""
        users = [Path(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
        return self._variables([*([] if ROOT.name in SITES else [ROOT]), *users])

    def _variables(self, more: list[Path]) -> dict[str, str]:
        first = [*([] if self.whole else [self.folder]), *more]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        if first:
            kept["PYTHONPATH"] = os.pathsep.join(map(str, first))
        # PyTorch would otherwise use operators again that another release of the same library has compiled.
        return kept | {"TORCH_EXTENSIONS_DIR": f"{self.folder}.extensions", "PYTHONUNBUFFERED": "1"}


def cache() -> Path:
    """Releases that are installed beside another Python or PyTorch lie elsewhere."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        torch = f"torch{version('torch')}"
    except PackageNotFoundError:
        torch = "no-torch"
    return home / "plumbline" / "versions" / f"python{sysconfig.get_python_version()}-{torch}"


def put(package: str, release: str, whole: bool = False, checked: bool = False) -> Place:
    """Installs a release, unless the cache has it, and checks that it can be imported from there, unless this process
    has ``checked`` it; an :class:`Unusable` says why not. ``whole``: in a virtual environment over the present one,
    which also gets those dependencies of the release that the present one does not fulfil; if the present one has that
    release, it gets nothing."""
    folder = cache() / f"{package}-{release}{'-environment' if whole else ''}"
    if not folder.exists():
        with _partial(folder.parent) as partial:
            _install(package, release, partial, whole)
            try:
                partial.rename(folder)
            except OSError:  # another process may have been faster
                if not folder.is_dir():
                    raise
    place = Place(package, release, folder, str(folder / "bin" / "python") if whole else sys.executable)
    if not checked:
        _probe(place)
    return place


@contextmanager
def _partial(parent: Path) -> Iterator[Path]:
    """A folder that is gone afterwards unless it was renamed: half an installation never gets its final name. Those
    of processes that were killed are removed, too."""
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(f"{PARTIAL}*"):
        owner = old.name.removeprefix(PARTIAL).partition("-")[0]
        if not (owner.isdigit() and psutil.pid_exists(int(owner))):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _install(package: str, release: str, folder: Path, whole: bool) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    install = ["install", "--quiet", "--no-build-isolation", "--no-warn-script-location", "--no-compile"]
    if whole:
        python = _environment(folder)
        command = [*pip, "--python", python, *install, f"{package}=={release}"]
    else:
        command = [*pip, *install, "--no-deps", "--target", str(folder), f"{package}=={release}"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ended = child.run(command, kept | BUILD, folder.parent)
    if ended.code:
        raise Unusable(f"pip does not install it: {ended.reason('ERROR')}")


def _environment(folder: Path) -> str:
    """A virtual environment that sees the present one's packages behind its own; its Python."""
    venv.EnvBuilder(symlinks=True).create(folder)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    lines = [f"import site; site.addsitedir({str(place)!r})\n" for place in _present()]
    (site / "present.pth").write_text("".join(lines), "utf-8")
    return str(folder / "bin" / "python")


def _present() -> list[Path]:
    return [place for place in map(Path, sys.path) if place.name in SITES and place.is_dir()]


def same(found: str, asked: str) -> bool:
    """Whether a version is the one asked for; a wheel of PyTorch says 2.12.1+cpu."""
    return Version(found).public == Version(asked).public


SIGN = "plumbline found "
PROBE = f"""
import importlib, importlib.metadata, json, sys
package = sys.argv[1]
found = importlib.metadata.distribution(package)
files = [file for file in found.files or () if file.suffix == ".py" and ".." not in file.parts]
modules = {{file.parts[:-1] if file.name == "__init__.py" else (*file.parts[:-1], file.stem) for file in files}}
least = min(map(len, modules))  # 2 in a namespace package
modules = sorted(".".join(module) for module in modules if len(module) == least)
alike = [name for name in modules if name.replace(".", "-").replace("_", "-") == package.replace("_", "-")]
module = importlib.import_module((alike or modules)[0])
print()
print({SIGN!r} + json.dumps([found.version, module.__file__]), flush=True)
"""


def _probe(place: Place) -> None:
    """Imports the release in a process such as its cases will have, which must get this version from this folder."""
    command = [place.python, "-P", "-s", "-c", PROBE, place.package]
    ended = child.run(command, place.beside_plumbline(), place.folder)
    told = [line.removeprefix(SIGN) for line in ended.lines if line.startswith(SIGN)]
    if ended.code or not told:
        raise Unusable(f"it cannot be imported beside the present environment: {ended.reason()}")
    found, file = json.loads(told[-1])
    if not same(found, place.version):
        raise Unusable(f"the imported package says that it is {found}")
    # The version is right: a copy of the present environment is the release that was asked for.
    homes = [place.folder, *(_present() if place.whole else [])]
    if not any(Path(file).is_relative_to(home) for home in homes):
        raise Unusable(f"another copy is imported: {file}")
