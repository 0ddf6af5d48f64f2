"""The ready files for schedulers can be read by them, and their commands exist."""

import getpass
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import cli

FOLDER = Path(__file__).parents[2] / ".ci" / "nightly"
COMMAND = re.compile(r"/srv/plumbline/venv/bin/plumbline ([^#&\n]*)")
FILES = ("crontab", "plumbline-nightly.service", "github.yml", "gitlab.yml", "slurm.sh")


def yaml(name: str) -> Any:
    return pytest.importorskip("yaml", reason="needs PyYAML").safe_load((FOLDER / name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_the_commands_exist(name: str) -> None:
    (found,) = COMMAND.findall((FOLDER / name).read_text())
    words = found.replace("$resume", "--resume").replace('"$config"', "/srv/plumbline/nightly.toml").split()
    options = cli._parser().parse_args(words)
    assert str(options.config) == "/srv/plumbline/nightly.toml"
    assert options.resume is (name != "crontab")


def test_every_file_is_in_the_table() -> None:
    text = (FOLDER / "README.md").read_text()
    for path in FOLDER.iterdir():
        assert path.name == "README.md" or path.suffix in (".timer",) or f"`{path.name}`" in text, path.name


def test_cron_has_five_fields_before_the_command() -> None:
    (line,) = [line for line in (FOLDER / "crontab").read_text().splitlines() if not re.match(r"#|\w+=", line)]
    *times, command = line.split(maxsplit=5)
    assert all(re.fullmatch(r"[\d*,/-]+", each) for each in times)
    assert command.startswith("/srv/")


def test_systemd_accepts_service_and_timer(tmp_path: Path) -> None:
    """With a program and a user that exist here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: Debian's package systemd")
    for path in FOLDER.glob("plumbline-nightly.*"):
        text = path.read_text().replace("/srv/plumbline/venv/bin/plumbline", sys.executable)
        text = text.replace("User=plumbline", f"User={getpass.getuser()}").replace("/srv/plumbline", str(tmp_path))
        (tmp_path / path.name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.glob("plumbline-nightly.*")))]
    done = subprocess.run(command, capture_output=True, text=True)
    told = [line for line in (done.stdout + done.stderr).splitlines() if "plumbline-nightly" in line]
    assert (done.returncode, told) == (0, []), done.stderr
    broken = tmp_path / "plumbline-nightly.timer"
    broken.write_text(broken.read_text().replace("01:15", "25:15"))
    assert "Failed to parse calendar" in subprocess.run(command, capture_output=True, text=True).stderr


def test_github_runs_it_every_night_on_a_runner_of_ones_own() -> None:
    found = yaml("github.yml")
    assert found[True]["schedule"] == [{"cron": "15 1 * * *"}]  # YAML 1.1 reads "on" as true
    job = found["jobs"]["nightly"]
    assert job["runs-on"] == ["self-hosted", "gpu"]
    assert all({"uses", "run"} & step.keys() for step in job["steps"])
    assert job["steps"][-1]["if"] == "always()"


def test_gitlab_runs_it_on_a_schedule_and_reads_its_junit_file() -> None:
    job = yaml("gitlab.yml")["nightly"]
    assert job["rules"] == [{"if": '$CI_PIPELINE_SOURCE == "schedule"'}]
    assert job["artifacts"]["reports"]["junit"] == "nightly/junit.xml"
    scripts = [line for part in ("before_script", "script", "after_script") for line in job[part]]
    for line in scripts:
        assert subprocess.run(["bash", "-n", "-c", line], capture_output=True).returncode == 0, line


def test_slurm_s_script_is_bash_and_sbatch_accepts_it_where_there_is_one() -> None:
    script = FOLDER / "slurm.sh"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr == ""
    given = re.findall(r"^#SBATCH (--[\w-]+)", script.read_text(), re.MULTILINE)
    assert len(given) == len(set(given)) > 5
    if shutil.which("sbatch") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no SLURM here: sbatch --test-only was not asked")
    done = subprocess.run(["sbatch", "--test-only", str(script)], capture_output=True, text=True)
    assert "invalid" not in done.stderr.lower() or "gpu" in done.stderr.lower(), done.stderr


class TestSlurm:
    """The script, with stand-ins of the night and of SLURM's commands."""

    @pytest.fixture
    def script(self, tmp_path: Path) -> Path:
        path = tmp_path / "slurm.sh"
        path.write_text((FOLDER / "slurm.sh").read_text().replace("/srv/plumbline", str(tmp_path)))
        for name in ("sbatch", "scontrol"):
            self.program(tmp_path / name, f'echo {name} "$@" >> {tmp_path}/asked')
        return path

    def program(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def run(self, script: Path, night: str, restarts: int = 0) -> "subprocess.Popen[str]":
        folder = script.parent
        self.program(folder / "venv/bin/plumbline", night)
        environment = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
        return subprocess.Popen(["bash", str(script)], env=environment, stdout=subprocess.PIPE, text=True)

    def asked(self, script: Path) -> list[str]:
        return [line.split()[0] for line in (script.parent / "asked").read_text().splitlines()]

    def test_a_night_submits_the_next_and_keeps_its_exit_code(self, script: Path) -> None:
        assert self.run(script, 'echo "$@"; exit 1').communicate()[0].split()[-1].endswith("nightly.toml")
        with self.run(script, "exit 1") as process:
            assert process.wait() == 1
        assert self.asked(script) == ["sbatch", "sbatch"]

    def test_a_night_that_is_put_back_goes_on(self, script: Path) -> None:
        assert self.run(script, 'echo "$@"', restarts=1).communicate()[0].split()[-1] == "--resume"
        assert not (script.parent / "asked").exists()

    def test_a_night_at_its_time_limit_is_told_and_put_back(self, script: Path) -> None:
        night = 'trap "kill $!; exit 2" TERM; sleep 20 >/dev/null & echo ready; wait'
        with self.run(script, night.replace("$!", "%1")) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.terminate()
            assert process.wait(timeout=15) == 2
        assert self.asked(script) == ["sbatch", "scontrol"]

    def test_a_night_that_is_killed_is_told_by_its_signal(self, script: Path) -> None:
        with self.run(script, "kill -KILL $$") as process:
            assert process.wait() == 128 + 9
        assert self.asked(script) == ["sbatch"]
