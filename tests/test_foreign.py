"""The installed plugin stays out of other projects' sessions, and is active in the suites'."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.sessions import SUITES, TINY, collected, run, usage_error

GPUS = """
def pytest_addoption(parser):
    parser.addoption("--gpus", type=int, default=1, help="their own")
    parser.addoption("--store")
"""
THEIRS = """
import pytest

@pytest.fixture
def gpus(pytestconfig):
    return pytestconfig.getoption("--gpus")

def test_theirs(gpus):
    assert gpus == 3
"""
OWN_SUITES = """
import pytest

@pytest.fixture(params=["small", "large"])
def case(request):
    return request.param

@pytest.fixture(params=[1])
def finding(request):
    return request.param

@pytest.fixture
def lab():
    return "my lab"

def test_mine(case, lab, finding):
    assert case in ("small", "large")
    assert lab == "my lab"
    assert finding == 1
"""


@pytest.fixture
def project(user: pytest.Pytester) -> pytest.Pytester:
    """Another project's suites, with the same names as ours."""
    assert "plumbline" in {point.name for point in entry_points(group="pytest11")}, "the plugin is not installed"
    user.makeconftest(GPUS)
    user.makepyfile(test_theirs=THEIRS)
    suites = user.mkdir("suites")
    (suites / "__init__.py").touch()
    (suites / "test_measures.py").write_text(OWN_SUITES)
    return user


@pytest.mark.parametrize("where", [(), ("test_theirs.py",), (".",)])
def test_a_project_has_options_of_the_same_names(project: pytest.Pytester, where: tuple[str, ...]) -> None:
    found = project.runpytest_subprocess("--gpus", "3", *where, "-k", "theirs")
    found.assert_outcomes(passed=1, deselected=0 if where == ("test_theirs.py",) else 2)
    assert found.ret == pytest.ExitCode.OK


@pytest.mark.parametrize("where", [("suites",), ("suites/test_measures.py",), ("--pyargs", "suites"), ("-k", "mine")])
def test_a_project_has_a_folder_suites_with_fixtures_of_the_same_names(
    project: pytest.Pytester, where: tuple[str, ...]
) -> None:
    found = project.runpytest_subprocess(*where)
    assert found.ret == pytest.ExitCode.OK
    assert found.parseoutcomes()["passed"] == 2
    assert not project.path.joinpath("plumbline.db").exists()


def test_a_keyword_may_be_longer_than_a_file_s_name(project: pytest.Pytester) -> None:
    found = project.runpytest_subprocess("--gpus", "3", "test_theirs.py", "-k", "theirs or " + "x" * 300)
    assert found.ret == pytest.ExitCode.OK, found.errlines


def test_help_and_markers_show_our_names_in_our_sessions_alone(project: pytest.Pytester) -> None:
    for flag, ours in (("--help", "--case-timeout"), ("--markers", "@pytest.mark.parity")):
        for where, there in (((), False), ((SUITES,), True)):
            output = project.runpytest_subprocess(*where, flag).stdout.str()
            assert (ours in output) == there


@pytest.mark.parametrize(
    "arguments",
    [
        (SUITES, "--gpus", "0"),
        ("--gpus", "0", "--ranks", "4", SUITES),
        ("--topics", "zero", "--engines", "torch", f"{SUITES}/test_measures.py"),
        (f"{SUITES}/test_measures.py::test_measure", "--gpus=0"),
    ],
)
def test_the_suites_run_from_the_folder_of_another_project(
    project: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    found = project.runpytest_subprocess(*arguments, "--workload", "tiny", "--co", "-q", "-p", "no:cacheprovider")
    assert found.ret == pytest.ExitCode.OK, found.errlines
    assert any("test_measure[parity-zero1-torch" in line for line in found.outlines)


@pytest.mark.parametrize("where", ["suites", "."])
def test_the_suites_run_from_their_own_folder_without_a_path(where: str) -> None:
    folder = Path(SUITES).parent
    command = [sys.executable, "-m", "pytest", "--co", "-q", "-p", "no:cacheprovider", *TINY, "--topics", "zero"]
    command += ["."] if where == "." else []
    command += ["--ignore=tests"] if where == "." else []
    done = subprocess.run(command, cwd=folder / where, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.OK, done.stderr
    assert "test_measure[parity-zero1-torch" in done.stdout


def test_the_suites_are_found_by_their_package(user: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(SUITES).parent))
    found = user.runpytest_subprocess("--pyargs", "suites", "--co", "-q", *TINY, "--topics", "zero")
    assert found.ret == pytest.ExitCode.OK, found.errlines
    assert any("test_measure[parity-zero1-torch" in line for line in found.outlines)


def test_the_command_runs_our_suites_in_a_folder_that_has_suites(project: pytest.Pytester) -> None:
    command = [sys.executable, "-m", "harness.cli", "run", "zero", "--gpus", "-1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--gpus must be at least 0, not -1" in done.stderr


def test_another_plugin_with_an_option_of_ours_is_named_by_the_option(user: pytest.Pytester) -> None:
    user.path.joinpath("other.py").write_text(GPUS)
    line = usage_error(run(user, "-p", "other"))
    assert "--gpus: another pytest plugin has an option of this name; disable that plugin with -p no:" in line


@pytest.mark.parametrize(
    ("option", "flag", "keywords"),
    [
        ("--tx", ("--tx", "popen"), "action='append', default=[]"),
        ("--forked", ("--forked",), "action='store_true'"),
        ("--reruns", ("--reruns", "2"), "type=int"),
        ("--count", ("--count", "2"), "type=int, default=1"),
    ],
)
def test_options_of_plugins_that_would_halve_or_repeat_a_session_are_refused(
    user: pytest.Pytester, option: str, flag: tuple[str, ...], keywords: str
) -> None:
    code = f"def pytest_addoption(parser):\n    parser.addoption({option!r}, {keywords})\n"
    user.path.joinpath("other.py").write_text(code)
    real = [word for name in ("xdist", "xdist.looponfail", "pytest_forked", "rerunfailures", "pytest_repeat")
            for word in ("-p", f"no:{name}")]  # fmt: skip
    line = usage_error(run(user, *real, "-p", "other", *flag, *TINY))
    assert f"{option} (pytest-" in line
    assert " does not work with the suites: " in line
    assert not user.path.joinpath("plumbline.db").exists()
    assert collected(user, *real, "-p", "other", *TINY, "--topics", "zero")


def test_a_plugin_that_shuffles_the_tests_changes_no_order(user: pytest.Pytester) -> None:
    """Shuffles like pytest-randomly."""
    code = """
import random, pytest

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items):
    random.Random(0).shuffle(items)
    return (yield)
"""
    user.path.joinpath("shuffles.py").write_text(code)
    arguments = (*TINY, "--topics", "zero,data_parallel", "--co", "-q")
    plain, shuffled = (
        [line for line in run(user, *more, *arguments).outlines if "test_measure[" in line]
        for more in ((), ("-p", "shuffles"))
    )
    assert plain == shuffled
    assert len(plain) > 20
