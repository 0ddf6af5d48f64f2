"""Requirements of engines: met, missing, too old, or a GPU that does not exist."""

import pytest

from harness.spec import Engine, requires
from harness.spec.gpus import Gpu


def needing(*requirements: str) -> Engine:
    return Engine("nowhere:build", requirements)


@pytest.mark.parametrize(
    ("requirement", "reason"),
    [
        ("pytest>=7", ""),
        ("pytest<1", "needs pytest<1; "),
        ("no-such-engine>=2", "no-such-engine is not installed; pip install 'no-such-engine>=2'"),
        ("cuda", "needs a CUDA GPU; this run has CPU ranks"),
        ("sm90", "needs a GPU of compute capability 9.0; this run has none"),
    ],
)
def test_requirements_that_cpu_ranks_do_not_meet_are_named(requirement: str, reason: str) -> None:
    found = requires.missing(needing(requirement), cuda=False)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("capabilities", "good"), [(("9.0",), True), (("10.0", "9.0"), True), (("9.0", "8.0"), False), (("8.9",), False)]
)
def test_every_gpu_must_have_the_capability(
    capabilities: tuple[str, ...], good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requires, "gpus", lambda: tuple(Gpu("NVIDIA H100", each) for each in capabilities))
    assert requires.missing(needing("cuda"), cuda=True) == ""
    assert (requires.missing(needing("sm90"), cuda=True) == "") is good


def test_the_first_thing_that_is_missing_is_named() -> None:
    assert requires.missing(needing("pytest", "no-such-engine", "cuda"), cuda=False).startswith("no-such-engine")


def test_an_unavailable_engine_is_missing_on_every_machine() -> None:
    assert requires.missing(Engine(unavailable="a repository only"), cuda=True) == "a repository only"


def test_an_engine_of_its_own_environment_is_not_to_be_installed_by_pip() -> None:
    engine = Engine("nowhere:build", ("no-such-engine>=2",), environment="odd-suites")
    assert requires.missing(engine, cuda=False) == "no-such-engine is not installed; tox -e odd-suites provides it"
