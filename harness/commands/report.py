"""``plumbline report``."""

import argparse
from pathlib import Path

from harness.commands.console import UserError
from harness.options import OPTIONS, helped


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("report", help="write the HTML report of a stored run")
    command.add_argument("--store", default="plumbline.db", **helped("--store"))
    command.add_argument("--run", metavar="ID", help="the run (default: the latest)")
    command.add_argument("--report", default="report", metavar="DIR", help="the output folder (default: report)")
    command.add_argument("--single-file", **OPTIONS["--single-file"])
    command.set_defaults(call=report)


def report(options: argparse.Namespace) -> int:
    from harness.store import Store, StoreError
    from reports.render import ReportError, write

    try:
        store = Store.open(options.store, create=False)
        print(write(store, options.run, Path(options.report), options.single_file))
    except (StoreError, ReportError) as error:
        raise UserError(str(error)) from None
    return 0
