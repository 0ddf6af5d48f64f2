"""Checked runs begun ahead: each runs once, in order, and none is left when time is measured."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done
from harness.run import ahead
from harness.run.ahead import Ahead
from harness.spec import Case, Topology, Workload
from tests.launch.worlds import run

CASES = [Case("topic", "variant", f"engine{index}", Topology(), Workload()) for index in range(3 * ahead.LOOK)]


def test_the_next_cases_are_begun_when_one_is_asked_for() -> None:
    begun: list[str] = []
    checks: Ahead[int] = Ahead(lambda case: begun.append(case.engine), CASES)
    checks(CASES[0])
    checks.rest()
    assert begun == [case.engine for case in CASES[: 1 + ahead.LOOK]]
    checks.close()


def test_every_case_runs_once_whatever_the_order_of_asking() -> None:
    begun: list[str] = []

    def run_one(case: Case) -> str:
        begun.append(case.engine)
        return case.engine

    checks = Ahead(run_one, CASES)
    for index in random.Random(0).sample(range(len(CASES)), len(CASES)):
        assert checks(CASES[index]) == f"engine{index}"
    assert sorted(begun) == sorted(case.engine for case in CASES)
    checks.close()


def test_an_exception_of_a_run_reaches_its_caller() -> None:
    def fails(case: Case) -> None:
        raise ValueError(case.engine)

    checks = Ahead(fails, CASES)
    for case in CASES:
        with pytest.raises(ValueError, match=case.engine):
            checks(case)
    checks.close()


def test_nothing_runs_after_rest() -> None:
    running: set[int] = set()

    def slow(case: Case) -> None:
        running.add(threading.get_ident())
        time.sleep(0.1)
        running.discard(threading.get_ident())

    checks = Ahead(slow, CASES)
    checks(CASES[0])
    checks.rest()
    assert not running
    checks.close()


def test_other_work_is_queued_behind_begun_runs_and_is_waited_for() -> None:
    begun: list[str] = []
    checks = Ahead(lambda case: begun.append(case.engine), CASES)
    checks(CASES[0])
    other = checks.also(lambda: begun.append("other"))
    checks.rest()
    assert other.done()
    assert sorted(begun[-ahead.AT_ONCE :])[-1] == "other"
    checks.close()


def test_no_work_begins_after_close() -> None:
    begun: list[str] = []
    wait = threading.Event()

    def waits(case: Case) -> None:
        begun.append(case.engine)
        wait.wait()

    checks = Ahead(waits, CASES)
    asking = threading.Thread(target=checks, args=(CASES[0],))  # it and the following ones: one more than run at once
    asking.start()
    while len(begun) < ahead.AT_ONCE or len(checks._begun) < ahead.LOOK:
        time.sleep(0.01)
    checks.close()
    wait.set()
    asking.join()
    checks._pool.shutdown(wait=True)
    assert len(begun) == ahead.AT_ONCE


def test_worlds_of_several_threads_share_a_server() -> None:
    with LocalLauncher() as launcher, ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: run(launcher, "total"), range(15)))
    assert found == [(Done(0, 3.0), Done(1, 3.0))] * 15


def test_the_thread_that_ran_one_case_is_there_when_others_are_expected() -> None:
    """A fork server ends with the thread that started it, and so do its ranks in other threads."""
    checks: Ahead[int] = Ahead(lambda case: threading.get_ident(), CASES[:1])
    worker = checks(CASES[0])
    checks.expect(lambda case: 0, CASES[1:2])
    assert checks(CASES[1]) == 0
    assert worker in {thread.ident for thread in threading.enumerate()}
    checks.close()
