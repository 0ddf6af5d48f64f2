"""Every engine can be imported where only the requirements that its card names are installed."""

import json
import subprocess
import sys

import pytest

from tests.test_layers import ENGINE_MODULES, INSTALLED, REQUIRED, ROOT, imports, libraries, with_their_own


def imported(name: str) -> set[str]:
    """The top-level modules that a module of ``impls`` imports, itself or through others of ``impls``: an engine that
    finds a stub of another library by itself would ask too much of it."""
    found, new = set[str](), {name}
    while new:
        found |= new
        paths = [ROOT.joinpath(*each.split(".")).with_suffix(".py") for each in new if each.startswith("impls.")]
        new = {each for path in paths if path.exists() for each in imports(path)} - found
    return {each.partition(".")[0] for each in found}


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    """Module of an engine → its import error in an environment with only the card's requirements of the engine."""
    together: dict[frozenset[str], list[str]] = {}
    for name, distributions in REQUIRED.items():
        together.setdefault(frozenset(distributions), []).append(name)
    work = [
        {
            "modules": names,
            "blocked": sorted(ENGINE_MODULES - libraries(with_their_own({*distributions}))),
            "absent": sorted(libraries({*distributions} - INSTALLED) & set.union(*map(imported, names))),
        }
        for distributions, names in together.items()
    ]
    command = [sys.executable, "-m", "tests.alone"]
    done = subprocess.run(command, input=json.dumps(work), capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", REQUIRED)
def test_an_engine_can_be_imported_with_its_own_requirements_alone(name: str, failures: dict[str, str]) -> None:
    assert failures.get(name, "") == ""
