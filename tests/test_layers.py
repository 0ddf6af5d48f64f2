"""Checks the architecture: the imports, the lengths of files, and the completeness of every card."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from harness import catalog
from harness.measures import MEASURES
from harness.plan import cases as plan
from harness.spec import Card, Case, Topology, Workload
from harness.spec.named import NAMED

ROOT = Path(__file__).parents[1]
PACKAGES = ("harness", "impls", "reports", "suites")
SCRIPTS = ROOT / "suites" / "findings"  # each stands alone, without the project
FILES = sorted(
    path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if not path.is_relative_to(SCRIPTS)
)
IMPLS = [path for path in FILES if path.is_relative_to(ROOT / "impls")]
CARDS = catalog.topics()
ENGINES = [engine for card in CARDS.values() for engine in card.engines.values() if engine.build]
COMPILERS = {engine.compiles for engine in ENGINES}
CAP, REFERENCE_CAP = 400, 150
HOMES = packages_distributions()  # top-level module → its distributions
INSTALLED = {distribution for homes in HOMES.values() for distribution in homes}
LIBRARIES = HOMES.keys() | sys.stdlib_module_names
MODULES = {  # of distributions that may not be installed, if they have another name
    "flash-attn-4": "flash_attn",
    "flashinfer-python": "flashinfer",
    "nv-grouped-gemm": "grouped_gemm",
}

# part of the project → other parts that it may import
BASE = {"harness.spec", "harness.catalog"}
RANKS = BASE | {"harness.meter", "harness.launch"}
RUN = RANKS | {"harness.judge"}
TOP = RUN | {"harness.run", "harness.measures", "harness.plan", "harness.options", "harness.replay", "harness.store"}
TOP |= {"harness.history", "harness.submission", "harness.versions", "harness.findings", "harness.plugin"}
TOP |= {"harness.usage", "harness.session", "harness.hooks", "reports"}
MAY_IMPORT: dict[str, set[str]] = {
    "harness.spec": set(),
    "harness.catalog": {"harness.spec", "impls"},  # impls: only to list the chapters, see below
    "harness.meter": {"harness.spec"},
    "harness.judge": BASE,
    "harness.store": {"harness.spec"},
    "harness.api": {"harness.store"},
    "harness.findings": {"harness.spec", "harness.plugin"},
    "harness.history": {"harness.spec", "harness.judge", "harness.store"},
    "harness.submission": {"harness.spec", "harness.store", "harness.options"},
    "harness.versions": BASE | {"harness.findings", "harness.plan", "harness.plugin", "harness.store"},
    "harness.launch": BASE | {"harness.meter"},
    "harness.run": RUN,
    "harness.measures": RUN | {"harness.run"},
    "harness.plan": BASE | {"harness.measures"},
    "harness.options": {"harness.launch", "harness.measures", "harness.plan", "harness.spec"},
    "harness.replay": set(),
    "harness.plugin": set(),  # it is loaded in every session of pytest, of any project
    "harness.usage": set(),
    "harness.session": TOP - {"harness.session", "harness.hooks"},
    "harness.hooks": TOP - {"harness.hooks"},
    "harness.nightly": TOP,
    "harness.commands": TOP | {"harness.nightly"},
    "harness.cli": {"harness.commands"},
    "impls": {"harness.spec"},
    "reports": {"harness.spec", "harness.store", "harness.history", "harness.options"},
    "suites": {"harness.spec"},
}


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(name: str) -> str:
    """``harness.launch.local`` → ``harness.launch``; for other packages, the package."""
    first, _, rest = name.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first == "harness" and rest else first


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports, including inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if _is_module(whole) else str(node.module)


def names(path: Path) -> Iterator[str]:
    """The functions and variables that the module defines."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_run_one_way(path: Path) -> None:
    own = part(module(path))
    if own == "harness":
        return
    project = {part(name) for name in imports(path) if name.partition(".")[0] in PACKAGES}
    assert project - {own} <= MAY_IMPORT[own]


def test_every_part_of_the_project_has_its_place_in_the_layers() -> None:
    assert {part(module(path)) for path in FILES} - {"harness"} == MAY_IMPORT.keys()


def test_the_layers_have_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        own = part(module(path))
        named = {part(name) for name in imports(path) if "." in name and name.partition(".")[0] in PACKAGES}
        graph.setdefault(own, set()).update(named - {own})
    order = list(TopologicalSorter(graph).static_order())  # CycleError names the cycle
    places = [order.index(f"harness.{name}") for name in ("spec", "launch", "run", "plan")]
    assert places == sorted(places)


def test_nothing_names_a_module_of_suites_and_the_harness_none_of_impls() -> None:
    for path in FILES:
        ours = {name for name in imports(path) if name.startswith(("suites.", "impls."))}
        assert not any(name.startswith("suites.") for name in ours)
        assert not (ours and module(path).startswith("harness"))


@pytest.mark.parametrize("path", FILES, ids=module)
def test_no_file_is_longer_than_its_cap(path: Path) -> None:
    cap = REFERENCE_CAP if path.name == "reference.py" else CAP
    assert len(path.read_text().splitlines()) <= cap


def test_no_test_file_is_longer_than_the_cap() -> None:
    long = [path.name for path in (ROOT / "tests").rglob("*.py") if len(path.read_text().splitlines()) > CAP]
    assert long == []


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_no_module_of_a_topic_is_called_after_a_library(card: Card) -> None:
    """If a file ``torch.py`` is run as a script, ``import torch`` finds the file beside it."""
    folder = ROOT.joinpath(*catalog.folder(card).split("."))
    assert {path.stem for path in folder.glob("*.py")} & LIBRARIES == set()


def layer(name: str) -> str:
    """``common``, ``engines``, or a topic as ``chapter.topic`` for a part of ``impls``; nothing for other modules."""
    _, first, second, *_ = [*name.split("."), "", ""]
    if not name.startswith("impls.") or (not second and not first):
        return ""
    return first if first in ("common", "engines") else f"{first}.{second}".rstrip(".")


def is_adapter(name: str) -> bool:
    return name.rpartition(".")[2].startswith("on_")


def is_kernels(name: str) -> bool:
    """Kernels of our own, in Triton, beside the adapter that calls them."""
    return name.rpartition(".")[2] == "kernels"


def is_planted(name: str) -> bool:
    return name.rpartition(".")[2] == "faults"


@pytest.mark.parametrize("path", IMPLS, ids=module)
def test_inside_impls_imports_go_from_topics_to_engines_to_common(path: Path) -> None:
    own = layer(module(path))
    others = {name for name in imports(path) if layer(name) not in ("", own)}
    if own == "common":
        assert others == set()
    elif own == "engines":
        assert {layer(name) for name in others} <= {"common"}
    elif not is_adapter(module(path)) and module(path) not in COMPILERS:
        assert "engines" not in {layer(name) for name in others}


@pytest.mark.parametrize("path", IMPLS, ids=module)
def test_adapters_and_planted_faults_are_imported_by_no_module(path: Path) -> None:
    ours = [name for name in imports(path) if name.startswith("impls.")]
    assert [name for name in ours if is_adapter(name) or is_planted(name)] == []


@pytest.mark.parametrize("path", [path for path in IMPLS if is_planted(module(path))], ids=module)
def test_planted_faults_know_no_topic_that_the_files_beside_them_do_not_know(path: Path) -> None:
    known = {layer(name) for beside in path.parent.glob("*.py") if beside != path for name in imports(beside)}
    assert {layer(name) for name in imports(path)} <= known | {"", "common", layer(module(path))}


def test_no_topic_needs_itself_through_another_one() -> None:
    graph: dict[str, set[str]] = {}
    for path in IMPLS:
        own = layer(module(path))
        graph.setdefault(own, set()).update({layer(name) for name in imports(path)} - {"", own})
    order = list(TopologicalSorter(graph).static_order())  # CycleError names the cycle
    assert order.index("parallelism.zero") < order.index("parallelism.hybrid_3d")
    assert order.index("parallelism.hybrid_3d") < order.index("acceleration.gradient_clipping")


def bases(name: str) -> Iterator[str]:
    """``module.Class`` of all classes that a module's classes derive from, as far as they are in the project."""
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    tree = ast.parse((path if path.exists() else path.with_suffix("") / "__init__.py").read_text())
    meant: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            meant |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            meant |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in ast.walk(tree):
        for base in node.bases if isinstance(node, ast.ClassDef) else ():
            first, _, rest = ast.unparse(base).partition(".")
            whole = ".".join(filter(None, (meant.get(first, first), rest)))
            yield whole
            if whole.startswith("impls."):
                yield from bases(whole.rpartition(".")[0])


@pytest.mark.parametrize("path", [path for path in IMPLS if is_adapter(module(path))], ids=module)
def test_no_adapter_derives_from_a_reference_or_from_another_topic(path: Path) -> None:
    own = layer(module(path))
    for base in bases(module(path)):
        place = base.rpartition(".")[0]
        assert not place.endswith(".reference")
        assert layer(place) in ("", "common", "engines", own)


def distribution(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0]


def libraries(distributions: set[str]) -> set[str]:
    """The top-level modules of distributions; if one is not installed, its name or the one known here."""
    found = {name for name, homes in HOMES.items() if {*homes} & distributions}
    return found | {MODULES.get(name, name.replace("-", "_")) for name in distributions - INSTALLED}


def with_their_own(distributions: set[str]) -> set[str]:
    """Distributions and their installation requirements."""
    found, new = set[str](), distributions
    while new:
        found |= new
        needed = [Requirement(text) for name in new & INSTALLED for text in requires(name) or []]
        new = {r.name for r in needed if not r.marker or r.marker.evaluate({"extra": ""})} - found
    return found


REQUIRED = {engine.build.partition(":")[0]: {*map(distribution, engine.requires)} - {"cuda"} for engine in ENGINES}
# Only engines search for the last ones.
ENGINE_MODULES = libraries({name for names in REQUIRED.values() for name in names})
ENGINE_MODULES |= {"peft", "flash_attn", "apex", "xformers"}


def test_an_engine_is_imported_only_in_its_own_adapters_and_in_what_these_share() -> None:
    for path in FILES:
        named = {name.partition(".")[0] for name in imports(path)} & ENGINE_MODULES
        allowed = is_adapter(module(path)) or is_kernels(module(path)) or layer(module(path)) == "engines"
        assert not named or allowed, f"{module(path)} imports {', '.join(named)}"


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
class TestEveryCard:
    def test_has_a_title_sources_variants_topologies_and_a_reference(self, card: Card) -> None:
        assert re.fullmatch(r"[a-z0-9_]+", card.name)
        assert catalog.folder(card).rpartition(".")[2] == card.name
        assert card.title
        assert card.variants
        assert card.topologies
        assert card.sources
        # a paper's authors and year, and the place in it
        assert all(re.search(r"\b(19|20)\d\d\b", source) for source in card.sources)
        assert "reference" in card.engines
        assert not card.engines["reference"].requires
        assert not card.engines["reference"].variants

    def test_names_engines_that_exist(self, card: Card) -> None:
        for name, engine in card.engines.items():
            assert bool(engine.build) != bool(engine.unavailable), name
            if engine.unavailable:
                continue
            target, _, function = engine.build.partition(":")
            path = ROOT.joinpath(*target.split(".")).with_suffix(".py")
            assert path.exists(), f"{name}: there is no {path.name}"
            assert path.stem == "reference" or path.stem.startswith("on_")
            assert function in names(path)
            assert set(engine.variants) <= card.variants.keys()

    def test_every_adapter_in_its_folder_is_an_engine(self, card: Card) -> None:
        folder = ROOT.joinpath(*catalog.folder(card).split("."))
        used = {engine.build.partition(":")[0].rpartition(".")[2] for engine in card.engines.values()}
        assert {path.stem for path in folder.glob("on_*.py")} <= used

    def test_has_topologies_that_parse_and_that_some_workload_fits(self, card: Card) -> None:
        for text in card.topologies:
            assert str(Topology.parse(text)) == text
            assert any(work.check(Topology.parse(text)) == "" for work in NAMED.values())

    def test_has_laws_and_claims_that_can_be_called(self, card: Card) -> None:
        for law in card.laws:
            assert callable(catalog.load(law.formula))
            assert law.measure in MEASURES
            assert law.tolerance >= 0
            assert law.source
        for claim in card.claims:
            assert callable(catalog.load(claim.check))
            assert claim.text
            assert claim.source
        assert len({claim.name for claim in card.claims}) == len(card.claims)

    def test_has_laws_that_promise_something_for_each_variant_somewhere(self, card: Card) -> None:
        cases = plan.cases(plan.Request(), {card.name: card})
        for law in card.laws:
            formula = catalog.load(law.formula)
            for name, variant in card.variants.items():
                promised = [formula(c.workload, c.topology, **variant) for c in cases if c.variant == name]
                assert any(figure is not None for figure in promised), f"{law.quantity} of {name}"


def test_variant_names_are_unique_over_all_topics() -> None:
    counts = Counter(variant for card in CARDS.values() for variant in card.variants)
    assert [name for name, count in counts.items() if count > 1] == []


def test_case_ids_are_unique_and_safe_on_a_command_line() -> None:
    request = plan.Request()
    ids = [case.id for case in plan.cases(request, plan.cards(request))]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z0-9_.]+(-[a-z0-9_.]+){3,4}", name) for name in ids)
    odd = Case("zero", "Zero 3", "My/Engine", Topology(dp=2), Workload("Größe 1"))
    assert re.fullmatch(r"[a-z0-9_.-]+", odd.id)


def test_collection_needs_neither_torch_nor_an_engine() -> None:
    script = """
import json, sys
import harness.spec, harness.catalog, harness.plan.plan, harness.hooks, harness.options, harness.findings
harness.catalog.topics()
print(json.dumps(sorted(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"torch", "numpy", "pandas", "sqlalchemy", "deepspeed", "megatron", "trl", "transformers"}
    assert heavy & set(json.loads(found.stdout)) == set()
    assert importlib.util.find_spec("torch")
