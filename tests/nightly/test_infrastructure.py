"""Only the infrastructure's own failures are tried again, and at most twice."""

from typing import Any

import pytest

from harness.run.earlier import earlier
from harness.run.infrastructure import RETRIES, due, signature
from harness.spec import Measurement
from harness.store import Store
from tests.nightly.examples import CASE

RANK = "\n\nrank 0 · Raised after 0.1 s\nTraceback (most recent call last):\n  File x\n"
KNOWN = {
    "torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/NCCLUtils.cpp:77, unhandled system error "
    "(run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5": "NCCL initialisation",
    "RuntimeError: ncclCommInitRankConfig failed": "NCCL initialisation",
    "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered": "GPU (ECC, Xid)",
    "RuntimeError: NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.": "GPU (ECC, Xid)",
    "OSError: [Errno 28] No space left on device: '/dev/shm/x'": "file system (ENOSPC, ESTALE)",
    "OSError: [Errno 116] Stale file handle": "file system (ENOSPC, ESTALE)",
    "harness.store.schema.StoreError: store x.db: database or disk is full": "file system (ENOSPC, ESTALE)",
    "torch.distributed.DistStoreError: Timed out after 301 seconds waiting for clients. 1/2 clients joined.": (
        "rendezvous timeout"
    ),
    "torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError": "rendezvous timeout",
    "torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while trying to connect to "
    "(node1, 29500).": "rendezvous timeout",
}
UNKNOWN = [
    "AssertionError: 1 != 2",
    "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:77, invalid usage (run with NCCL_DEBUG=WARN)",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
    "RuntimeError: [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(OpType=ALLREDUCE)",
    "OSError: [Errno 2] No such file or directory: 'x'",
    "no answer within 120 s",
    "killed by SIGKILL",
    "",
]


@pytest.mark.parametrize(("message", "name"), KNOWN.items())
def test_a_failure_of_the_infrastructure_is_recognised(message: str, name: str) -> None:
    assert signature(message) == name
    assert signature(message + RANK) == name
    assert signature(f"the measure parity raised\nTraceback (most recent call last):\n  File x\n{message}\n") == name


@pytest.mark.parametrize("message", UNKNOWN)
def test_any_other_failure_is_not(message: str) -> None:
    assert signature(message) == ""


@pytest.mark.parametrize("message", KNOWN)
def test_what_follows_from_an_engines_own_failure_is_not(message: str) -> None:
    assert signature(f"AssertionError: 1 != 2{RANK}AssertionError\n\nrank 1 · Raised after 0.2 s\n{message}") == ""


def stored(url: str, *measurements: Measurement) -> list[dict[str, Any]]:
    store = Store.open(url)
    run = store.begin({}, "pytest")
    store.add(run, CASE, "cpu", measurements)
    return store.records(run)


def failed(reason: str, verdict: str = "error", attempts: int = 0) -> Measurement:
    before = [{"signature": "x", "reason": "x", "recorded": "x"}] * attempts
    return Measurement("memory", "run", None, "", verdict, reason, detail={"attempts": before} if before else {})


@pytest.mark.parametrize(
    ("measurement", "again"),
    [
        (failed("[Errno 28]"), True),
        (failed("[Errno 28]", attempts=RETRIES - 1), True),
        (failed("[Errno 28]", attempts=RETRIES), False),
        (failed("[Errno 28]", verdict="fail"), False),
        (failed("[Errno 28]", verdict="skipped"), False),
        (failed("ValueError: 1"), False),
    ],
)
def test_an_error_is_due_until_it_was_tried_again_twice(measurement: Measurement, again: bool, tmp_path: Any) -> None:
    records = stored(str(tmp_path / "x.db"), measurement)
    assert [due(record) for record in records] == [again]
    found = earlier(records, [("memory", CASE)])
    assert (("memory", CASE.id) in found.kept) is not again
    assert (("memory", CASE.id) in found.attempts) is again


def test_a_test_that_is_tried_again_keeps_what_happened_before(tmp_path: Any) -> None:
    records = stored(str(tmp_path / "x.db"), failed("OSError: [Errno 28] full\nmore", attempts=1))
    _, latest = earlier(records, [("memory", CASE)]).attempts["memory", CASE.id]
    assert latest["signature"] == "file system (ENOSPC, ESTALE)"
    assert latest["reason"] == "OSError: [Errno 28] full"
