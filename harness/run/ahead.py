"""Runs checked runs and their oracles before the tests that need them. They time nothing, so two may share the
cores."""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

from harness.spec import Case

CORES = len(os.sched_getaffinity(0))
AT_ONCE = max(min(2, CORES), CORES // 4)  # worlds, each with several ranks
LOOK = 4 * AT_ONCE  # runs begun ahead or queued: while a long one runs, shorter ones can overtake it
Result = TypeVar("Result")
Other = TypeVar("Other")


class Ahead(Generic[Result]):
    """Calls ``run`` with a case when its result is requested, and meanwhile with the ``cases`` that follow."""

    def __init__(self, run: Callable[[Case], Result], cases: Iterable[Case] = ()) -> None:
        self._run, self._next = run, deque(cases)
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._begun: dict[str, Future[Result]] = {}  # not requested yet
        self._others: list[Future[Any]] = []

    def expect(self, run: Callable[[Case], Result], cases: Iterable[Case]) -> None:
        """Sets new cases and their function. The threads stay, since a fork server ends with the thread that started
        it."""
        self._run, self._next = run, deque(cases)

    def __call__(self, case: Case) -> Result:
        asked = self._begun.pop(case.id, None) or self._pool.submit(self._run, case)
        self._next = deque(following for following in self._next if following.id != case.id)
        while self._next and len(self._begun) < LOOK:
            following = self._next.popleft()
            self._begun[following.id] = self._pool.submit(self._run, following)
        return asked.result()

    def also(self, run: Callable[[], Other]) -> Future[Other]:
        """Queues other work behind the runs that have begun."""
        self._others = [other for other in self._others if not other.done()]  # the rest would keep their results
        self._others.append(self._pool.submit(run))
        return self._others[-1]

    def rest(self) -> None:
        """Waits until nothing runs, since timing follows."""
        wait(self._begun.values())
        wait(self._others)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
