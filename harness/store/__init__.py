"""Storage of records: a SQLite file by default, or PostgreSQL by URL."""

from harness.store.environment import environment, hardware_key
from harness.store.published import published
from harness.store.query import FORMATS, SeriesRow, export, told
from harness.store.redact import command, redact
from harness.store.schema import StoreError
from harness.store.store import Store
from harness.store.tables import COLUMNS
from harness.store.writer import Writer

__all__ = [
    "COLUMNS",
    "FORMATS",
    "SeriesRow",
    "Store",
    "StoreError",
    "Writer",
    "command",
    "environment",
    "export",
    "hardware_key",
    "published",
    "redact",
    "told",
]
