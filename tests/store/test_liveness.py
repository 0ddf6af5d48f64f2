"""Whether a run's process has ended: known on its own machine, and on no other."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from harness.store import Store
from harness.store.liveness import gone, process

ANOTHER = "0123456789abcdef"


def test_a_process_that_is_there_is_not_gone() -> None:
    assert not gone(process(), one_machine=True)
    assert process()["pid"] == os.getpid()


def test_a_process_that_has_ended_is_gone_and_one_that_took_its_id_is_another() -> None:
    code = "import json; from harness.store.liveness import process; print(json.dumps(process()))"
    ended = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert gone(ended, one_machine=False)
    assert gone({**process(), "started": process()["started"] - 1}, one_machine=False)


def test_a_process_that_nobody_has_waited_for_is_gone() -> None:
    code = "import json; from harness.store.liveness import process; print(json.dumps(process()), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        found = json.loads(child.stdout.readline())
        assert not gone(found, one_machine=False)
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and remains a zombie
        assert gone(found, one_machine=False)


@pytest.mark.parametrize("one_machine", [True, False])
def test_a_process_of_another_container_of_this_machine_is_never_said_to_be_gone(one_machine: bool) -> None:
    assert not gone({**process(), "space": ANOTHER, "pid": 2**22 + 1}, one_machine)


def test_a_process_of_another_boot_is_gone_if_the_store_is_a_file_and_unknown_if_it_is_a_server() -> None:
    elsewhere = {**process(), "boot": ANOTHER, "space": ANOTHER, "pid": 2**22 + 1}
    assert gone(elsewhere, one_machine=True)
    assert not gone(elsewhere, one_machine=False)


def test_a_process_that_was_not_described_is_not_judged() -> None:
    assert not gone({}, one_machine=True)


def test_the_description_names_no_machine(store: Store) -> None:
    text = json.dumps(process())
    assert socket.gethostname() not in text
    assert all(len(str(process()[name])) == len(ANOTHER) for name in ("boot", "space"))
    store.begin({"cpu": "x"}, "pytest")
    assert store.runs()[0]["environment"] == {"cpu": "x"}
