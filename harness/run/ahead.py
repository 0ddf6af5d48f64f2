"""Checked runs and their oracles ahead of the tests that ask for them. They time nothing: two may share the cores."""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

from harness.spec import Case

CORES = len(os.sched_getaffinity(0))
AT_ONCE = max(min(2, CORES), CORES // 4)  # worlds, of several ranks each
LOOK = 4 * AT_ONCE  # so many are begun ahead or wait for their turn: while a long one runs, short ones go past it
Result = TypeVar("Result")
Other = TypeVar("Other")


class Ahead(Generic[Result]):
    """Calls ``run`` with a case when it is asked for, and meanwhile with those of ``cases`` that come next."""

    def __init__(self, run: Callable[[Case], Result], cases: Iterable[Case] = ()) -> None:
        self._run, self._next = run, deque(cases)
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._begun: dict[str, Future[Result]] = {}  # and not yet asked for
        self._others: list[Future[Any]] = []

    def expect(self, run: Callable[[Case], Result], cases: Iterable[Case]) -> None:
        """Other cases come, to be run so. The threads stay: a fork server that one of them started ends with it."""
        self._run, self._next = run, deque(cases)

    def __call__(self, case: Case) -> Result:
        asked = self._begun.pop(case.id, None) or self._pool.submit(self._run, case)
        self._next = deque(following for following in self._next if following.id != case.id)
        while self._next and len(self._begun) < LOOK:
            following = self._next.popleft()
            self._begun[following.id] = self._pool.submit(self._run, following)
        return asked.result()

    def also(self, run: Callable[[], Other]) -> Future[Other]:
        """Something else to be done, behind what is begun."""
        self._others.append(self._pool.submit(run))
        return self._others[-1]

    def rest(self) -> None:
        """Waits until nothing runs: what comes is timed."""
        wait(self._begun.values())
        wait(self._others)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
