"""The standalone scripts: each wrong result has one, which shows it with the versions that are installed."""

import ast
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import findings
from harness.findings import Checked
from harness.spec import Finding

OURS = {"harness", "impls", "reports", "suites", "tests", "plumbline"}
AT_ONCE = 2
MOST_LINES = 60
# Faults that not every machine can show.
MACHINES = {
    "bitsandbytes_narrow_rows": "a CPU with AVX512",
    "bitsandbytes_nf4_cpu": "a CPU with AVX512-BF16",
    "deepspeed_nvme_unaligned_read": "libaio, and a file system that refuses unaligned addresses",
}
FINDINGS = findings.read()
WITH_SCRIPT = [finding for finding in FINDINGS if findings.script(finding)]
# All of them take ten minutes, and each night they are run: plumbline findings --check.
ONE_AN_ENGINE = list({finding.engine: finding for finding in WITH_SCRIPT}.values())


@pytest.fixture(scope="session")
def checked(request: pytest.FixtureRequest) -> Mapping[str, Checked]:
    """By id, the outcome of every script whose test is selected and whose engine is installed."""
    tests = [item for item in request.session.items if "checked" in getattr(item, "fixturenames", ())]
    asked = {test.callspec.params["finding"].id for test in tests if isinstance(test, pytest.Function)}
    chosen = [finding for finding in WITH_SCRIPT if finding.id in asked and all(findings.installed(finding).values())]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        paths = [findings.FOLDER / f"{finding.id}.py" for finding in chosen]
        return dict(zip([finding.id for finding in chosen], pool.map(findings.check, paths), strict=True))


@pytest.mark.parametrize("finding", [f for f in FINDINGS if f.kind == "wrong result"], ids=lambda f: f.id)
def test_a_wrong_result_has_a_script(finding: Finding) -> None:
    assert findings.script(finding)


def test_a_script_has_a_record() -> None:
    assert {path.stem for path in findings.FOLDER.glob("*.py")} <= {finding.id for finding in FINDINGS}


@pytest.mark.parametrize("finding", WITH_SCRIPT, ids=lambda f: f.id)
def test_a_script_is_short_and_imports_nothing_of_ours(finding: Finding) -> None:
    text = (findings.FOLDER / f"{finding.id}.py").read_text()
    told, *statements = ast.parse(text).body
    assert isinstance(told, ast.Expr), "its docstring says first what goes wrong"
    assert len(text.splitlines()) <= MOST_LINES
    for node in (node for statement in statements for node in ast.walk(statement)):
        named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.partition(".")[0] for name in named} & OURS


@pytest.mark.slow
@pytest.mark.parametrize("finding", ONE_AN_ENGINE, ids=lambda f: f.id)
def test_a_fault_is_still_there_unless_its_record_has_it_as_gone(
    finding: Finding, checked: Mapping[str, Checked]
) -> None:
    if absent := [name for name, version in findings.installed(finding).items() if not version]:
        pytest.skip(f"not installed: {', '.join(absent)}")
    found = checked[finding.id]
    if found.state == findings.UNKNOWN and finding.id in MACHINES:
        pytest.skip(f"it takes {MACHINES[finding.id]}: {found.reason}")
    assert found == Checked(findings.GONE if findings.repaired(finding) else findings.STILL)
