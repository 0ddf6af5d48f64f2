"""``plumbline export``."""

import argparse
from pathlib import Path

from harness.commands.console import UserError
from harness.options import helped

TRACKERS = ("mlflow", "wandb")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("export", help="copy a stored run to MLflow or Weights & Biases, offline")
    command.add_argument("run", metavar="RUN", nargs="?", help="the run (default: the latest)")
    command.add_argument("--to", choices=TRACKERS, required=True, help="the tracker to copy it to")
    command.add_argument("--store", default="plumbline.db", **helped("--store"))
    command.add_argument("--output", type=Path, metavar="DIR", help="the output folder (default: the tracker's name)")
    command.set_defaults(call=export)


def export(options: argparse.Namespace) -> int:
    """Writes the run into a folder that the tracker shows or uploads, and prints the command that does it."""
    from harness.store import Store, StoreError
    from harness.store.trackers import send

    try:
        store = Store.open(options.store, create=False)
        print(send(store, options.run, options.to, options.output or Path(options.to)))
    except StoreError as error:
        raise UserError(str(error)) from None
    return 0
