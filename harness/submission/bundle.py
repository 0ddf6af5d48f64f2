"""Makes and reads bundles: a zip file of ``run.json``, ``records.parquet`` and ``SHA256SUMS``.

The last is in the format of ``sha256sum --check``. Its own digest names the bundle: equal records give equal bytes.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from harness.spec import VERDICTS
from harness.store import COLUMNS, Store, StoreError, export, hardware_key, published
from harness.store.query import frame
from harness.store.record import plain

RUN, RECORDS, SUMS = "run.json", "records.parquet", "SHA256SUMS"
FORMAT = 1
LARGEST = 2**30  # bytes of all parts, unpacked
DATE = (1980, 1, 1, 0, 0, 0)  # of each part: the bytes do not depend on when the bundle is made
FIGURES = ("value", "law", "bound")


class BundleError(Exception):
    """A bundle that cannot be made, or is refused; the message is one line."""


@dataclass(frozen=True)
class Bundle:
    """``run``: run, command, status, started, finished, environment, commit, dirty, packages and hardware."""

    run: Mapping[str, Any]
    records: tuple[Mapping[str, Any], ...]
    digest: str

    @property
    def environment(self) -> Mapping[str, Any]:
        environment: Mapping[str, Any] = self.run["environment"]
        return environment


def make(store: Store, run: str, path: Path) -> Bundle:
    """Writes the bundle of a run, as everybody may read it."""
    (row,) = published(store.runs(run))
    records = published(store.records(run))
    if not records:
        raise BundleError(f"run {run} has no records to submit; plumbline records --runs lists the runs")
    if row["status"] == "running":
        raise BundleError(f"run {run} has not ended yet; submit it afterwards")
    environment = row["environment"]
    try:
        hardware = hardware_key(environment)
    except ValueError as error:
        raise BundleError(f"run {run}: {error}") from None
    about = {
        "plumbline_bundle": FORMAT,
        **{name: row[name] for name in ("run", "command", "status", "started", "finished")},
        "hardware": hardware,
        "commit": environment.get("commit"),
        "dirty": environment.get("dirty"),
        "packages": environment.get("packages") or {},
        "environment": environment,
    }
    table = frame(records)
    parts = {
        RUN: (json.dumps(plain(about), indent=1, ensure_ascii=False) + "\n").encode(),
        RECORDS: _parquet(table, path),
    }
    sums = "".join(f"{_sha256(content)}  {name}\n" for name, content in parts.items()).encode()
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in {**parts, SUMS: sums}.items():
            entry = zipfile.ZipInfo(name, DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, part)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content.getvalue())
        partial.replace(path)
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror}; name another file with --output") from None
    finally:
        partial.unlink(missing_ok=True)
    return Bundle(plain(about), tuple(records), _sha256(sums))


def read(path: Path) -> Bundle:
    """Checks a bundle without unpacking it to disk: nobody knows who made it."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = _parts(archive)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise BundleError(f"{path}: no bundle of plumbline submit: {error}") from None
    stated = parts[SUMS].decode("utf-8", "replace").splitlines()
    for name in (RUN, RECORDS):
        if f"{_sha256(parts[name])}  {name}" not in stated:
            raise BundleError(f"{path}: {name} is not what {SUMS} says: the bundle was changed after it was made")
    try:
        about = json.loads(parts[RUN])
        if about["plumbline_bundle"] != FORMAT:
            raise ValueError(f"its format is {about['plumbline_bundle']}, and this Plumbline reads {FORMAT}")
        if about["hardware"] != hardware_key(about["environment"]):
            raise ValueError("its hardware is not that of its environment")
        records = _records(parts[RECORDS], about["run"])
        if not all(isinstance(about[name], str) for name in ("run", "command", "started", "status")):
            raise ValueError("its run is not described by texts")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise BundleError(f"{path}: {RUN} or {RECORDS} cannot be read: {error}") from None
    return Bundle(about, tuple(records), _sha256(parts[SUMS]))


def _parts(archive: zipfile.ZipFile) -> dict[str, bytes]:
    names = sorted(entry.filename for entry in archive.infolist())
    if names != sorted((RUN, RECORDS, SUMS)):
        raise zipfile.BadZipFile(f"it holds {', '.join(names[:5])} instead of {RUN}, {RECORDS} and {SUMS}")
    size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST:
        raise zipfile.BadZipFile(f"it holds {size:,} bytes, more than {LARGEST:,}")
    parts = {}
    for name in names:
        with archive.open(name) as part:  # the sizes above are only what the file says of itself
            parts[name] = part.read(LARGEST + 1)
        if len(parts[name]) > LARGEST:
            raise zipfile.BadZipFile(f"{name} is larger than {LARGEST:,} bytes")
    return parts


def _records(content: bytes, run: str) -> list[dict[str, Any]]:
    import pandas

    table = pandas.read_parquet(BytesIO(content))
    if sorted(table.columns) != sorted(COLUMNS):
        raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    records = [{str(name): value for name, value in row.items()} for row in rows]
    for record in records:
        if record["run"] != run or record["verdict"] not in VERDICTS:
            raise ValueError(f"a record of run {record['run']!r} with verdict {record['verdict']!r} is out of place")
        for name in FIGURES:
            record[name] = None if record[name] is None else float(record[name])
        record["detail"] = json.loads(record["detail"])
    return records


def _parquet(table: Any, beside: Path) -> bytes:
    partial = beside.with_name(f".{beside.name}.{os.getpid()}.records")
    try:
        export(table, "parquet", partial)
        return partial.read_bytes()
    except StoreError as error:
        raise BundleError(str(error)) from None
    finally:
        partial.unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
