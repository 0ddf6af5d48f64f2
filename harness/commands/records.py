"""``plumbline records``."""

import argparse
import sys
from pathlib import Path

from rich.markup import escape

from harness.commands.console import Console, UserError, table
from harness.options import helped

FORMATS = ("csv", "json", "parquet")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("records", help="print the records or the runs in the store")
    command.add_argument("--store", default="plumbline.db", **helped("--store"))
    command.add_argument("--run", metavar="ID", help="the run, or '*' for all (default: the latest)")
    command.add_argument("--format", choices=FORMATS, help="the format (default: csv, or a table for --runs)")
    command.add_argument("--output", type=Path, metavar="FILE", help="the output file (default: standard output)")
    command.add_argument("--runs", action="store_true", help="print the runs instead of their records")
    command.set_defaults(call=records)


def records(options: argparse.Namespace) -> int:
    """Prints the records of a run, or the runs, for people or for another program."""
    from harness.store import Store, StoreError, export, told

    if options.format == "parquet" and options.output is None and sys.stdout.isatty():
        raise UserError("Parquet is a binary format; add --output FILE, or redirect the output to a file or pipe")
    try:
        store = Store.open(options.store, create=False)
        if not options.runs:
            found = store.frame(options.run)
            export(found, options.format or "csv", options.output)
            if found.empty:
                which = f"run {options.run} has" if options.run not in (None, "*") else "there are"
                print(f"plumbline: {which} no records; plumbline records --runs lists the runs", file=sys.stderr)
        elif options.format or options.output:
            export(store.run_frame(options.run), options.format or "csv", options.output)
        else:
            runs = store.runs(options.run)
            listed = table("run", "started", "status", "records", "command")
            for run in runs:
                cells = (run["run"], run["started"][:19], run["status"], run["records"], run["command"])
                listed.add_row(*(escape(str(cell)) for cell in cells))
            Console().print(listed)
            for line in told([run["run"] for run in runs if run["status"] == "killed"]):
                print(f"plumbline: {line}", file=sys.stderr)
    except StoreError as error:
        raise UserError(str(error)) from None
    return 0
