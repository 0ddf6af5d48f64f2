"""Failures of the infrastructure, recognised by their messages. Only these are ever tried again."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

RETRIES = 2

# A failure's name → its message. An engine's own mistake has none of them: NCCL's "invalid usage" is not here, for
# example, and neither is a collective that waits for a rank.
SIGNATURES: Mapping[str, "re.Pattern[str]"] = MappingProxyType(
    {
        "NCCL initialisation": re.compile(
            r"ncclCommInit|NCCL error in: .*(unhandled system error|remote process exited|network error)"
            r"|NCCL.*(bootstrap|no socket interface)",
            re.IGNORECASE,
        ),
        "GPU (ECC, Xid)": re.compile(r"uncorrectable (ECC|NVLink) error|\bXid\b|fallen off the bus|GPU is lost"),
        "file system (ENOSPC, ESTALE)": re.compile(
            r"\[Errno (28|116)\]|\b(ENOSPC|ESTALE)\b|No space left on device|Stale (NFS )?file handle"
            r"|database or disk is full"
        ),
        "rendezvous timeout": re.compile(
            r"RendezvousTimeoutError|DistStoreError: (Timed out|wait timeout)|waiting for clients"
            r"|client socket has timed out|timed out .* while trying to connect to"
        ),
    }
)


def signature(reason: str) -> str:
    """The name of the infrastructure's failure that a reason opens with; empty if it is none. Only the first failure's
    message counts: the ranks that lost a peer fail with messages of the network, whatever the peer died of."""
    line = _message(reason)
    return next((name for name, message in SIGNATURES.items() if message.search(line)), "")


def _message(reason: str) -> str:
    first, _, rest = reason.partition("\n")
    if not rest.startswith("Traceback "):
        return first
    last = rest.rpartition("Traceback (most recent call last):\n")[2]  # of a measure that raised
    return next((line for line in last.splitlines() if line and not line[0].isspace()), "")


def attempts(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The failures of the infrastructure that preceded a record, in order."""
    return list(record["detail"].get("attempts", ()))


def due(record: Mapping[str, Any]) -> bool:
    """Whether a record is such a failure, and may be tried again."""
    failed = record["verdict"] == "error" and bool(signature(record["reason"]))
    return failed and len(attempts(record)) < RETRIES
