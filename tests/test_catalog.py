"""Topics and engines by name: built in, from installed packages, and added for a session."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness import catalog
from harness.plan import cases as plan
from harness.spec import Card, Engine, Functions, Grid, Row, Topology, Trainers, Workload
from harness.spec.contract import COMMON, DENSE

ENTRY_POINTS = """[plumbline.topics]
tiny_topic = tiny:CARD
[plumbline.engines]
zero.tiny = tiny.reference:build
"""
CARD = """
from harness.spec import Card, Engine
ENGINES = {"reference": Engine("tiny.reference:build")}
CARD = Card("tiny_topic", "A tiny topic", ("Nobody 2026, §1",), {"tiny_one": {}}, ENGINES, ("dp1",))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package, in the form an installer leaves it, with a topic and an engine."""
    folder, info = tmp_path / "tiny", tmp_path / "tiny-1.0.dist-info"
    folder.mkdir()
    info.mkdir()
    (folder / "__init__.py").write_text(CARD)
    (folder / "reference.py").write_text("def build(workload, topology): ...")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("tiny", "tiny.reference", "tiny.grid", "tiny.plain"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return info / "entry_points.txt"


def test_the_built_in_topics_are_found_by_their_cards() -> None:
    topics = catalog.topics()
    assert {"zero", "data_parallel", "flash_attention", "preference"} <= topics.keys()
    assert all(isinstance(card, Card) and card.name == name for name, card in topics.items())


def test_an_installed_package_brings_topics_and_engines(package: Path) -> None:
    topics = catalog.topics()
    assert topics["tiny_topic"].title == "A tiny topic"
    assert topics["zero"].engines["tiny"] == Engine("tiny.reference:build")
    assert "tiny" not in topics["data_parallel"].engines
    assert topics["tiny_topic"].contract == COMMON


def test_a_package_may_not_replace_a_topic(package: Path) -> None:
    (package.parents[1] / "tiny" / "__init__.py").write_text(CARD.replace("tiny_topic", "zero"))
    with pytest.raises(ValueError, match="two topics are called 'zero': one is from the package tiny:CARD"):
        catalog.topics()


def test_two_topics_may_not_have_variants_of_one_name(package: Path) -> None:
    (package.parents[1] / "tiny" / "__init__.py").write_text(CARD.replace("tiny_one", "zero3"))
    with pytest.raises(ValueError, match="topics zero and tiny_topic both have a variant 'zero3': rename one"):
        catalog.topics()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zero=json:load", "--add-engine takes TOPIC:NAME=module:function, not 'zero=json:load'"),
        ("zero:mine=json", "--add-engine takes"),
        ("zero:mine=nowhere:build", "no module 'nowhere' in the current folder or the environment"),
        ("zero:mine=no.where:build", "no module 'no.where'"),
        ("zero:mine=.nowhere:build", "module '.nowhere' cannot be found: "),
        ("zero:mine=json:lead", "json/__init__.py has no 'lead'; did you mean load or loads?"),
        ("zerro:mine=json:load", "unknown topic 'zerro'; did you mean zero?"),
        ("zero:deepspeed=json:load", "topic zero has an engine 'deepspeed' already; choose another name"),
    ],
)
def test_an_engine_that_cannot_be_added_is_told_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        catalog.topics([text])


@pytest.mark.parametrize(
    ("source", "refusal"),
    [
        ("def build(workload, topology): ...", ""),
        ("try:\n    from nowhere import build\nexcept ImportError:\n    build = None", ""),
        ("from nowhere import *", ""),
        ("globals()['build'] = print", ""),
        ("def __getattr__(name):\n    return print", ""),
        ("def set():\n    global build\n    build = print\nset()", ""),
        ("from functools import partial as build", ""),
        ("class build: ...", ""),
        ("def biuld(workload, topology): ...", "user.py has no 'build'; did you mean biuld?"),
        ("def outer():\n    def build(): ...", "user.py has no 'build'"),
        ("print(build)", "user.py has no 'build'"),
        ("", "user.py has no 'build'"),
        ("a = 1\ndef build(:", "user.py, line 2: "),
    ],
)
def test_an_added_engines_function_is_looked_for_without_importing_its_module(
    source: str, refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engine_of_a_user.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    added = ["zero:mine=engine_of_a_user:build"]
    if refusal:
        with pytest.raises(ValueError, match=re.escape(refusal)) as error:
            catalog.topics(added)
        assert "\n" not in str(error.value)
    else:
        assert catalog.topics(added)["zero"].engines["mine"] == Engine("engine_of_a_user:build")
    assert "engine_of_a_user" not in sys.modules


@pytest.mark.parametrize("build", ["math:sqrt", "sys:exit"])
def test_a_function_of_a_module_without_a_source_is_taken_at_its_word(build: str) -> None:
    assert catalog.topics([f"zero:mine={build}"])["zero"].engines["mine"] == Engine(build)


def test_a_folder_that_is_no_module_has_no_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder_of_a_user").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="folder_of_a_user has no 'build'"):
        catalog.topics(["zero:mine=folder_of_a_user:build"])


def test_an_engine_is_added_for_all_variants_and_the_cards_stay_as_they_were() -> None:
    assert catalog.topics(["zero:mine=json:load"])["zero"].engines["mine"] == Engine("json:load")
    assert "mine" not in catalog.topics()["zero"].engines


@pytest.mark.parametrize(
    ("name", "message"),
    [("deepsped", "unknown engine 'deepsped'; did you mean deepspeed?"), ("xyz", "known: deepspeed, torch")],
)
def test_an_unknown_name_gets_the_nearest_or_all(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        catalog.known(name, ["torch", "deepspeed"], "engine")


def test_the_card_names_its_contract() -> None:
    topics = catalog.topics()
    contract = topics["flash_attention"].contract
    assert isinstance(contract, Functions)
    assert contract.problem == "impls.acceleration.flash_attention.problem"
    assert topics["zero"].contract == COMMON


def test_a_topic_may_bring_its_own_work(package: Path) -> None:
    tiny = replace(catalog.topics()["tiny_topic"], grid=Grid((Row("uneven", "fp32", True),), timed=("uneven",)))
    request = plan.Request(topics=("tiny_topic",))
    cases = plan.cases(request, {"tiny_topic": tiny})
    assert [case.id for case in cases] == ["tiny_one-reference-dp1-fp32-uneven"]
    assert "throughput" in plan.measures(cases[0], request, tiny)


def test_a_variant_that_computes_something_else_has_its_own_dense_model(package: Path) -> None:
    (package.parent.parent / "tiny" / "plain.py").write_text(
        "def options(workload, topology, late=False):\n    return {'delay': topology.pp} if late else None"
    )
    work, topology, tiny = Workload(), Topology(pp=2), Trainers(plain="tiny.plain")
    assert catalog.dense(tiny, work, topology, {"late": True}) == ("tiny.plain", {"delay": 2})
    assert catalog.dense(tiny, work, topology, {}) == (DENSE, {})
    assert catalog.dense(COMMON, work, topology, {"stage": 3}) == (DENSE, {})
