"""Plumbline's records for a notebook: ``import plumbline; plumbline.records("plumbline.db")``."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

__all__ = ["records", "runs"]


def records(url: str = "plumbline.db", run: str | None = "*") -> "pandas.DataFrame":
    """The records of all runs as a pandas frame, one row a measured figure, the oldest first.

    ``url``: a path, ``sqlite:///FILE`` or ``postgresql://USER@HOST/DATABASE``. ``run``: the id of one run, or None for
    the latest. Columns: run; case and its topic, variant, engine, topology, workload, dtype; device; measure, quantity,
    value, unit; law (the promised value) and bound (the limit that passes); verdict, reason; direction (lower, higher
    or equal is better); detail (a dict: samples and more); recorded (UTC, ISO 8601). Missing figures are NaN.
    A store that cannot be read raises :class:`harness.store.StoreError`, whose message is one line with advice.
    """
    from harness.store import Store

    return Store.open(url, create=False).frame(run)


def runs(url: str = "plumbline.db") -> "pandas.DataFrame":
    """The runs as a pandas frame, the newest first: run, command, status, started, finished, environment (a dict: the
    hardware and the software's versions), and the number of records."""
    from harness.store import Store

    return Store.open(url, create=False).run_frame()
