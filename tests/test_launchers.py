"""The options of launchers: wrong ones are one line that says what to do, before anything runs."""

import sys

import pytest

from tests.sessions import TINY, run, usage_error


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--hosts", "a,b"), "--hosts is for --launcher torchrun; leave it out"),
        (("--launcher", "slurm", "--hosts", "a,b"), "--hosts is for --launcher torchrun; leave it out"),
        (("--launcher", "torchrun"), "--launcher torchrun: the nodes are not known: give the nodes with --hosts A,B"),
        (("--launcher", "ray"), "--launcher ray: the nodes are not known: give their number with --nodes N"),
        (("--launcher", "slurm", "--nodes", "0"), "--nodes must be at least 1, not 0"),
        (("--launcher", "slurm", "--nodes", "2"), "--launcher slurm: srun is not on PATH; start on a node of a Slurm"),
        (("--launcher", "torchrun", "--hosts", "a,b"), "--launcher torchrun: ssh is not on PATH; install it, or give"),
    ],
)
def test_a_wrong_option_is_a_usage_error(
    user: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], line: str
) -> None:
    monkeypatch.setenv("PATH", str(user.path))
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    found = run(user, *TINY, "--topics", "zero", "--engines", "reference", "--measures", "parity", *options)
    assert line in usage_error(found)


def test_a_host_that_does_not_answer_is_a_usage_error_with_the_shells_words(user: pytest.Pytester) -> None:
    shell = f"{sys.executable} -c 'import sys; sys.exit(\"no route to \" + sys.argv[1])'"
    found = run(
        user,
        *TINY,
        "--topics",
        "zero",
        "--engines",
        "reference",
        "--measures",
        "parity",
        "--launcher",
        "torchrun",
        "--hosts",
        "a",
        "--remote-shell",
        shell,
    )
    assert "a: no route to a); check that" in usage_error(found)
