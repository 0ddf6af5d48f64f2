"""The installed pytest plugin. It stays out of every session that does not run Plumbline's suites."""

import importlib
import importlib.util
import os
from pathlib import Path

import pytest

SUITES = Path(__file__).resolve().parents[1] / "suites"  # beside the harness, in a checkout or installed


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Loads the hooks and their options only in a session of the suites, since another project's options may have the
    same names.

    The options are not parsed yet, so option values are checked as if they were paths; few of them are.
    """
    start = Path(early_config.invocation_params.dir)
    places = [start / arg.partition("::")[0] for arg in args if arg and not arg.startswith("-")]
    named = [place for place in places if os.path.exists(place)]  # Path.exists() raises where a name is too long
    if not named and start == early_config.rootpath:
        named = [start / place for place in early_config.getini("testpaths")]
    ours = any(_within(place, early_config.rootpath) for place in named or [start])
    if ours or ("--pyargs" in args and any(arg.partition(".")[0] == SUITES.name for arg in args) and _by_name()):
        early_config.pluginmanager.register(importlib.import_module("harness.hooks"), "plumbline-suites")


def _within(place: Path, root: Path) -> bool:
    """Whether the path is inside the suites, or is the folder of our own checkout above them."""
    place = place.resolve()
    return place.is_relative_to(SUITES) or place == root.resolve() == SUITES.parent


def _by_name() -> bool:
    """Whether the package ``suites`` is ours: another project may have a package of this name."""
    found = importlib.util.find_spec(SUITES.name)
    places = (found and found.submodule_search_locations) or ()
    return SUITES in [Path(place).resolve() for place in places]
