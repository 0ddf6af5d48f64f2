"""The command ``plumbline``: shows what is installed, runs the suites and reads the results."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import shtab
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from harness import catalog, findings
from harness.options import OPTIONS
from harness.plan import cases
from harness.plugin import SUITES
from harness.spec import Finding, gpus
from harness.spec.finding import KINDS
from harness.spec.named import NAMED
from harness.spec.requires import missing

INTERRUPTED, ERROR, USAGE = 2, 3, 4  # pytest's exit codes
PIPED = 10_000  # columns: rich truncates wider output, and assumes 80 for a file or pipe
FORMATS = ("csv", "json", "parquet")
EPILOG = """examples:
  plumbline doctor                              what is installed and which engines will run
  plumbline plan zero --depth quick             the cases of a run and their measures
  plumbline run zero --engines reference,deepspeed
  plumbline run --workload mine.toml --measures parity,throughput
  plumbline findings --engine deepspeed         what is known to be wrong or costly
  plumbline records --format csv > figures.csv
  plumbline report --run 20260101-120000-abcdef
  pytest suites/ -k "zero3 and deepspeed"       the same cases, with all of pytest's own options
exit codes are pytest's: 0 all passed, 1 some failed, 2 interrupted, 3 no report or another error, 4 wrong usage,
5 no case matches
"""


def main(arguments: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the locale may not be Unicode: "×" would fail
    options = argparse.Namespace(call=None)
    try:
        options = _parser().parse_args(arguments)
        code: int = options.call(options)
        sys.stdout.flush()  # flush here, where a closed pipe is expected
    except (ValueError, UserError) as error:
        print(f"plumbline: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("plumbline: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has closed the pipe early; a session that was running has ended early too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again when it exits
        return ERROR if options.call is run else 0
    return code


class UserError(Exception):
    """One line that says what to do."""


class _Parser(argparse.ArgumentParser):
    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # flush now: a closed pipe then fails in main, not when Python exits
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        """argparse exits with 2, which is pytest's code for an interrupted session; this exits with pytest's usage
        error."""
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}; {self.prog} --help tells more\n")


class _Console(Console):
    """Never truncates output to a file or pipe, and does not interpret names as markup."""

    def __init__(self) -> None:
        super().__init__(width=None if sys.stdout.isatty() else PIPED, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _table(*columns: str, title: str | None = None) -> Table:
    """Long names wrap in a narrow terminal."""
    return Table(*(Column(name, overflow="fold") for name in columns), title=title, title_justify="left")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="plumbline",
        description="Checks and measures training engines against readable references.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"plumbline {_version('plumbline')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("doctor", help="show what is installed and which engines will run")
    command.set_defaults(call=doctor)

    command = commands.add_parser("list", help="list topics with variants and engines, and the named workloads")
    command.set_defaults(call=list_)

    command = commands.add_parser("run", help="run the suites, all topics or some", description=run.__doc__)
    _add_options(command)
    command.set_defaults(call=run)

    command = commands.add_parser("plan", help="print the cases and measures of such a run", description=plan.__doc__)
    _add_options(command)
    command.set_defaults(call=plan)

    command = commands.add_parser("report", help="write the HTML report of a stored run")
    command.add_argument("--store", default="plumbline.db", **_help("--store"))
    command.add_argument("--run", metavar="ID", help="the run (default: the latest)")
    command.add_argument("--report", default="report", metavar="DIR", help="the output folder (default: report)")
    command.set_defaults(call=report)

    command = commands.add_parser("records", help="print the records or the runs in the store")
    command.add_argument("--store", default="plumbline.db", **_help("--store"))
    command.add_argument("--run", metavar="ID", help="the run, or '*' for all (default: the latest)")
    command.add_argument("--format", choices=FORMATS, help="the format (default: csv, or a table for --runs)")
    command.add_argument("--output", type=Path, metavar="FILE", help="the output file (default: standard output)")
    command.add_argument("--runs", action="store_true", help="print the runs instead of their records")
    command.set_defaults(call=records)

    command = commands.add_parser(
        "findings", help="what is known to be wrong or costly in the engines", description=findings_.__doc__
    )
    command.add_argument("id", nargs="?", metavar="ID", help="explain this finding (default: list them)")
    command.add_argument("--kind", choices=KINDS, metavar="KIND", help=f"only this kind: {', '.join(KINDS)}")
    command.add_argument("--engine", metavar="NAME", help="only findings of this library")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--script", action="store_true", help="print the finding's standalone script")
    what.add_argument("--check", action="store_true", help="run the scripts: still there, gone, or cannot be judged")
    command.set_defaults(call=findings_)

    command = commands.add_parser(
        "completion",
        help="print the shell's completion script",
        description="For bash: plumbline completion bash > ~/.local/share/bash-completion/completions/plumbline",
    )
    command.add_argument("shell", choices=("bash", "zsh"))
    command.set_defaults(call=completion)
    return parser


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("topic", nargs="*", help="topic names, as with --topics (default: all)")
    for name, keywords in OPTIONS.items():
        command.add_argument(name, **keywords)
    command.add_argument("-k", metavar="EXPRESSION", help="run only cases whose id matches, as in pytest")


def _help(option: str) -> dict[str, Any]:
    return {key: value for key, value in OPTIONS[option].items() if key in ("metavar", "help")}


def doctor(options: argparse.Namespace) -> int:
    """Shows versions, hardware, and whether each engine of each topic will run."""
    console = _Console()
    found = gpus.gpus()
    names = ", ".join(dict.fromkeys(f"{gpu.name}, capability {gpu.capability}" for gpu in found))
    console.print(f"Python {sys.version.split()[0]} · {len(found)} GPUs" + (f" ({names})" if found else ""))
    if not found:
        console.print(gpus.found().note or "No GPU: the suites run on CPU ranks (gloo).")
    versions = _table("package", "version", title="Packages")
    for package in ("torch", "deepspeed", "megatron-core", "transformers", "trl", "triton", "psycopg"):
        versions.add_row(package, _version(package))
    console.print(versions)
    engines = _table("topic", "engine", "variants", "", title="Engines")
    for card in cases.cards(cases.Request()).values():
        for name, engine in card.engines.items():
            reason = missing(engine, bool(found))
            state = f"[yellow]skipped: {escape(reason)}[/]" if reason else "[green]will run[/]"
            engines.add_row(card.name, name, " ".join(engine.variants or card.variants), state)
    console.print(engines)
    console.print(f"CPU memory is counted by: {_memory_meter()}")
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
    """Lists all names that the command line accepts."""
    console = _Console()
    topics = _table("topic", "variants", "engines", "topologies", title="Topics")
    for card in cases.cards(cases.Request()).values():
        topics.add_row(card.name, "\n".join(card.variants), "\n".join(card.adapted), " ".join(card.topologies))
    console.print(topics)
    workloads = _table("workload", "parameters", "batch × sequence", "optimizer", "dtype", title="Workloads")
    for name, work in NAMED.items():
        size = f"{work.batch_size} × {work.sequence_length}"
        workloads.add_row(name, f"{work.model.parameters / 1e6:,.1f} M", size, work.optimizer, work.dtype)
    console.print(workloads)
    return 0


def run(options: argparse.Namespace) -> int:
    """Runs the suites: the same as ``pytest suites/`` with these options."""
    return _pytest(options)


def plan(options: argparse.Namespace) -> int:
    """Prints each case with its measures, and runs nothing."""
    return _pytest(options, "--collect-only", "-qq", "--disable-warnings")


def _pytest(options: argparse.Namespace, *more: str) -> int:
    import pytest

    arguments = [str(SUITES), *more]
    if options.topic:
        options.topics = ",".join([*options.topic, *([] if options.topics is None else [options.topics])])
    for name in OPTIONS:
        value = getattr(options, name[2:].replace("-", "_"))
        arguments += [f"{name}={one}" for one in (value if isinstance(value, list) else [value]) if one is not None]
    if options.k is not None:
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
    """Prints the records of a run, or the runs, for people or for another program."""
    from harness.store import Store, StoreError, export

    if options.format == "parquet" and options.output is None and sys.stdout.isatty():
        raise UserError("Parquet is a binary format; add --output FILE, or redirect the output to a file or pipe")
    try:
        store = Store.open(options.store, create=False)
        if not options.runs:
            export(store.frame(options.run), options.format or "csv", options.output)
        elif options.format or options.output:
            export(store.run_frame(options.run), options.format or "csv", options.output)
        else:
            table = _table("run", "started", "status", "records", "command")
            for found in store.runs(options.run):
                cells = (found["run"], found["started"][:19], found["status"], found["records"], found["command"])
                table.add_row(*(escape(str(cell)) for cell in cells))
            _Console().print(table)
    except StoreError as error:
        raise UserError(str(error)) from None
    return 0


def findings_(options: argparse.Namespace) -> int:
    """Lists the findings, wrong results first, or explains one. With --check it runs the standalone scripts of those
    selected, and the exit status is 1 if one of the faults is gone: its record must then be changed. A script that
    cannot be judged, as where its engine is not installed, does not change the exit status."""
    found = {finding.id: finding for finding in findings.read()}
    if options.id:
        found = {options.id: found[catalog.known(options.id, found, "finding")]}
    if options.engine:
        catalog.known(options.engine, {finding.engine for finding in found.values()}, "engine")
    chosen = [f for f in found.values() if options.kind in (None, f.kind) and options.engine in (None, f.engine)]
    if options.script:
        return _print_script(chosen, options.id)
    if options.check:
        return _check(chosen)
    console = _Console()
    if options.id:
        for finding in chosen:
            console.print(f"[bold]{finding.id}[/]: {escape(finding.title)}")
            table = Table.grid(Column(style="dim", no_wrap=True), Column(overflow="fold"), padding=(0, 2))
            for name, text in _explained(finding).items():
                table.add_row(name, escape(text))
            console.print(table)
        return 0
    table = _table("kind", "id", "title", "seen in")
    for finding in chosen:
        table.add_row(finding.kind, finding.id, escape(finding.title), ", ".join(finding.seen))
    console.print(table)
    return 0


def _explained(finding: Finding) -> dict[str, str]:
    """Every field of a finding in plain words, and the commands that show it."""
    noticed = "silent: no warning, no error" if finding.silent else "not silent: the engine warns or fails"
    met = "a user meets it without any unusual option" if finding.default else "only with options that are not defaults"
    facts = {
        "kind": finding.kind,
        "consequence": finding.consequence,
        "cause": finding.cause,
        "noticed": f"{noticed}; {met}",
        "seen in": ", ".join(finding.seen),
        "right in": ", ".join(finding.right),
        "since": finding.since,
        "public": " – ".join(filter(None, (finding.link, finding.public))),
        "look again": f"after {finding.review}" + (" (this is due)" if finding.due else ""),
        "figures": "\n".join(map(str, finding.symptoms)),
        "cases": _shown_by(finding),
        "needs": ", ".join(finding.needs),
        "script": f"plumbline findings {finding.id} --script" if findings.script(finding) else "",
    }
    return {name: text for name, text in facts.items() if text}


def _shown_by(finding: Finding) -> str:
    """The command that runs the cases that show a finding."""
    request = cases.Request()
    every = cases.every(request, cases.cards(request))
    shown = [case for case in every if any(symptom.matches(case.id) for symptom in finding.symptoms)]
    if not shown:
        return ""
    chosen = {
        "--topics": sorted({case.topic for case in shown}),
        "--engines": sorted({case.engine for case in shown}),
        "--measures": sorted({symptom.measure for symptom in finding.symptoms}),
    }
    command = "".join(f" {option} {','.join(names)}" for option, names in chosen.items())
    return f"plumbline run{command}" + (" --gpus 1" if all(s.device == "cuda" for s in finding.symptoms) else "")


def _print_script(chosen: list[Finding], asked: str | None) -> int:
    if not asked:
        raise UserError("--script prints the script of one finding; name it: plumbline findings ID --script")
    for path in map(findings.script, chosen):
        if path is None:
            raise UserError(f"{asked} has no script; plumbline findings {asked} names the cases that show it")
        print(path.read_text("utf-8"), end="")
    return 0


def _check(chosen: list[Finding]) -> int:
    runs = [(finding, path) for finding in chosen if (path := findings.script(finding))]
    if not runs:
        raise UserError("none of these findings has a script; the suites' cases show them")
    console, gone = _Console(), 0
    for number, (finding, path) in enumerate(runs, start=1):
        console.print(f"{number} of {len(runs)} {finding.id}", end=" ")
        state, reason = findings.check(path)
        if state == findings.GONE:
            gone += 1
            here = ", ".join(f"{name} {version}" for name, version in findings.installed(finding).items())
            reason = f"here with {here}; add these versions to the record's field right"
        console.print(f"{state}{': ' if reason else ''}{escape(reason)}")
    return 1 if gone else 0


def completion(options: argparse.Namespace) -> int:
    """Prints the shell's completion script for everything that can follow ``plumbline``."""
    print(shtab.complete(_parser(), shell=options.shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
