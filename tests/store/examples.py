"""A case with its measurements, other processes' use of a store, and a store that is refused."""

import multiprocessing
import os
import signal
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest

from harness.spec import Case, Measurement, Topology, Workload
from harness.store import Store, StoreError

PASSWORD = "s3cret@/:%"  # of the server; with every character that has a meaning in a URL
FORK = multiprocessing.get_context("fork")  # starts in a millisecond; nothing here has threads
CASE = Case("zero", "zero3", "deepspeed", Topology(dp=2), Workload())
FINDING = Measurement(
    measure="memory",
    quantity="peak",
    value=0.1 + 0.2,  # needs all 17 digits
    unit="B",
    verdict="pass",
    reason="30% below the law",
    law=1e300,
    bound=5e-324,
    direction="lower",
    detail={"series": [1, 2.5, None], "kind": {"real": True}, "big": 2**62},
)


def write(url: str, started: Barrier, quantities: int) -> None:
    """One session: opens (and perhaps creates) the store at the same time as others, then writes measurements one by
    one."""
    started.wait()
    store = Store.open(url)
    run = store.begin({}, "pytest")
    for number in range(quantities):
        store.add(run, CASE, "cpu", [FINDING.but(quantity=str(number))])
    store.finish(run, "finished")


def write_and_die(url: str) -> None:
    store = Store.open(url)
    run = store.begin({}, "pytest")
    store.add(run, CASE, "cpu", [FINDING])
    os.kill(os.getpid(), signal.SIGKILL)


def written(store: Store, *measurements: Measurement, case: Case = CASE, **filters: Any) -> list[dict[str, Any]]:
    """``measurements`` after they were stored in a new run and read back."""
    run = store.begin({}, "pytest")
    store.add(run, case, "cpu", measurements)
    return store.records(run, **filters)


def write_on(url: str, told: int) -> None:
    """Writes records 0, 1, 2 … until it is killed, and tells each on the pipe ``told`` once it is stored."""
    store = Store.open(url)
    run = store.begin({}, "pytest")
    for number in range(10**6):
        store.add(run, CASE, "cpu", [FINDING.but(quantity=str(number))])
        os.write(told, b".")


def refusal(url: str, create: bool = True) -> str:
    """The message, which is one line without the password."""
    with pytest.raises(StoreError) as caught:
        Store.open(url, create)
    message = str(caught.value)
    assert "\n" not in message
    assert PASSWORD not in message
    assert caught.value.__cause__ is None
    return message
