"""Storage of records: a SQLite file by default, or PostgreSQL by URL."""

from harness.store.environment import environment, hardware_key
from harness.store.query import COLUMNS, FORMATS, export
from harness.store.redact import command, redact
from harness.store.schema import StoreError
from harness.store.store import Store

__all__ = ["COLUMNS", "FORMATS", "Store", "StoreError", "command", "environment", "export", "hardware_key", "redact"]
