"""The command ``plumbline``: what is installed, what can run, run it, and read what was measured."""

import argparse
import io
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness import plan
from harness.options import OPTIONS
from harness.spec import gpus
from harness.spec.named import NAMED
from harness.spec.requires import missing

USAGE = 4  # pytest's exit code for a usage error
EPILOG = """examples:
  plumbline doctor                              what is installed, what will run, what will be skipped and why
  plumbline run zero --engines reference,deepspeed
  plumbline run --workload mine.toml --measures parity,throughput
  plumbline records --format csv > figures.csv
  plumbline report --run 20260101-120000-abcdef
  pytest suites/ -k "zero3 and deepspeed"       the same cases, with all of pytest's own options
"""


def main(arguments: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale without Unicode has no "×"
    options = _parser().parse_args(arguments)
    try:
        code: int = options.call(options)
    except (ValueError, UserError) as error:
        print(f"plumbline: {error}", file=sys.stderr)
        return USAGE
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        return 0
    return code


class UserError(Exception):
    """One clear line that says what to do."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="plumbline",
        description="Checks and measures training engines against readable references.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("doctor", help="what is installed, what will run, what will be skipped and why")
    command.set_defaults(call=doctor)

    command = commands.add_parser("list", help="topics with variants and engines, and the named workloads")
    command.set_defaults(call=list_)

    command = commands.add_parser("run", help="run the suites, all topics or some", description=run.__doc__)
    command.add_argument("topic", nargs="*", help="topics (default: all)")
    for name, keywords in OPTIONS.items():
        if name != "--topics":
            command.add_argument(name, **keywords)
    command.add_argument("-k", metavar="EXPRESSION", help="only cases whose id matches, as in pytest")
    command.set_defaults(call=run)

    command = commands.add_parser("report", help="write the HTML report of a stored run")
    command.add_argument("--store", default="plumbline.db", **_help("--store"))
    command.add_argument("--run", metavar="ID", help="which run (default: the latest)")
    command.add_argument("--report", default="report", metavar="DIR", help="the folder to write to (default: report)")
    command.set_defaults(call=report)

    command = commands.add_parser("records", help="print what the store holds as CSV, JSON or Parquet")
    command.add_argument("--store", default="plumbline.db", **_help("--store"))
    command.add_argument("--run", metavar="ID", help="which run; '*' for all (default: the latest)")
    command.add_argument("--format", choices=("csv", "json", "parquet"), default="csv")
    command.add_argument("--output", type=Path, metavar="FILE", help="write there (default: standard output)")
    command.add_argument("--runs", action="store_true", help="list the runs instead of their records")
    command.set_defaults(call=records)
    return parser


def _help(option: str) -> dict[str, Any]:
    return {key: value for key, value in OPTIONS[option].items() if key in ("metavar", "help")}


def doctor(options: argparse.Namespace) -> int:
    """Versions, hardware, and for each engine of each topic whether it will run."""
    console = Console()
    found = gpus.gpus()
    names = ", ".join(dict.fromkeys(f"{gpu.name}, capability {gpu.capability}" for gpu in found))
    console.print(f"Python {sys.version.split()[0]} · {len(found)} GPUs" + (f" ({names})" if found else ""))
    if not found:
        console.print(gpus.found().note or "No GPU: the suites run on CPU ranks (gloo).")
    versions = Table("package", "version", title="Packages", title_justify="left")
    for package in ("torch", "deepspeed", "megatron-core", "transformers", "trl", "triton", "psycopg"):
        versions.add_row(package, _version(package))
    console.print(versions)
    engines = Table("topic", "engine", "variants", "", title="Engines", title_justify="left")
    for card in plan.cards(plan.Request()).values():
        for name, engine in card.engines.items():
            reason = missing(engine, bool(found))
            state = f"[yellow]skipped: {reason}[/]" if reason else "[green]will run[/]"
            engines.add_row(card.name, name, " ".join(engine.variants or card.variants), state)
    console.print(engines)
    console.print(f"Memory on the CPU is counted by: {_memory_meter()}")
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _memory_meter() -> str:
    from harness.meter import memory  # torch

    try:
        memory.compile_allocator()
    except (RuntimeError, OSError) as error:
        return f"a dispatch mode over live storages, since {error}"
    return "the counting allocator"


def list_(options: argparse.Namespace) -> int:
    """Everything that can be named on the command line."""
    console = Console()
    topics = Table("topic", "variants", "engines", "topologies", title="Topics", title_justify="left")
    for card in plan.cards(plan.Request()).values():
        topics.add_row(card.name, "\n".join(card.variants), "\n".join(card.adapted), " ".join(card.topologies))
    console.print(topics)
    workloads = Table("workload", "parameters", "batch × sequence", "optimizer", "dtype", title="Workloads")
    for name, work in NAMED.items():
        size = f"{work.batch_size} × {work.sequence_length}"
        workloads.add_row(name, f"{work.model.parameters / 1e6:,.1f} M", size, work.optimizer, work.dtype)
    console.print(workloads)
    return 0


def run(options: argparse.Namespace) -> int:
    """Runs the suites: ``pytest suites/`` with the same options."""
    import pytest

    import suites

    arguments = [str(Path(suites.__path__[0]))]
    if options.topic:
        arguments += ["--topics", ",".join(options.topic)]
    for name in OPTIONS:
        value = getattr(options, name[2:].replace("-", "_"), None)
        for one in value if isinstance(value, list) else [value]:
            arguments += [] if one is None else [name, str(one)]
    if options.k:
        arguments += ["-k", options.k]
    return int(pytest.main(arguments))


def report(options: argparse.Namespace) -> int:
    from harness.store import Store, StoreError
    from reports.render import ReportError, write

    try:
        print(write(Store.open(options.store, create=False), options.run, Path(options.report)))
    except (StoreError, ReportError) as error:
        raise UserError(str(error)) from None
    return 0


def records(options: argparse.Namespace) -> int:
    from harness.store import Store, StoreError, export

    try:
        store = Store.open(options.store, create=False)
        if options.runs:
            table = Table("run", "started", "status", "records", "command")
            for found in store.runs():
                cells = (found["run"], found["started"][:19], found["status"], found["records"], found["command"])
                table.add_row(*map(str, cells))
            Console().print(table)
        else:
            export(store.frame(options.run), options.format, options.output)
    except StoreError as error:
        raise UserError(str(error)) from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
