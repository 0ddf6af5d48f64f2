"""Whether this machine fulfils an engine's requirements, without importing the engine."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement

from harness.spec.gpus import gpus
from harness.spec.topic import Engine

ANOTHER = "is installed"  # in the reason of a case whose adapter requires another release


def library(name: str, engine: Engine) -> str:
    """The distribution that the engine of this name adapts; a process that has imported it serves all its adapters. The
    engine's own name if it requires none."""
    named = (Requirement(each).name for each in engine.requires if each != "cuda" and not each.startswith("sm"))
    return next(named, name)


def distributions(engines: Iterable[Engine]) -> list[str]:
    """The distributions that engines require, each once, in alphabetical order."""
    each = (requirement for engine in engines for requirement in engine.requires)
    return sorted({Requirement(text).name for text in each if text != "cuda" and not text.startswith("sm")})


def missing(engine: Engine, cuda: bool) -> str:
    """The reason why its requirements are not met, or an empty string. ``cuda``: the ranks of this session have
    GPUs."""
    if engine.unavailable:
        return engine.unavailable
    for requirement in engine.requires:
        if requirement == "cuda":
            if not cuda:
                return "needs a CUDA GPU; this run has CPU ranks"
        elif requirement.startswith("sm"):
            need = (int(requirement[2:-1]), int(requirement[-1]))
            have = [gpu.capability for gpu in gpus()] if cuda else []
            if not have or min(map(_numbers, have)) < need:
                found = ", ".join(dict.fromkeys(have)) or "none"
                return f"needs a GPU of compute capability {need[0]}.{need[1]}; this run has {found}"
        elif reason := _distribution(Requirement(requirement), engine.environment):
            return reason
    return ""


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def _distribution(requirement: Requirement, environment: str) -> str:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        remedy = f"tox -e {environment} provides it" if environment else f"pip install '{requirement}'"
        return f"{requirement.name} is not installed; {remedy}"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"needs {requirement}; {found} {ANOTHER}"
    return ""
