"""``plumbline versions``."""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from rich.markup import escape

from harness import catalog, findings
from harness.commands.console import Console, UserError, table
from harness.options import OPTIONS, words
from harness.plan import cases
from harness.spec import Finding
from harness.versions import RIGHT, UNKNOWN, WRONG, FindingRow, Versions, model
from harness.versions.asked import EXAMPLE, Asked, parse

NONE_JUDGED = 1  # exit status
LOOKS = {RIGHT: "[green]right[/]", WRONG: "[red]wrong[/]"}
OURS = ("--store", "--report")  # a session's own, of which each release gets its own
CHOOSING = ("--topics", "--engines", "--workload", "--topologies", "--dtypes", "--measures")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "versions", help="run the same cases in several releases of a library", description=versions.__doc__
    )
    command.add_argument(
        "releases", nargs="?", metavar="PACKAGE==A,B..C", help="deepspeed==0.19.2,0.19.5 or deepspeed==0.19.2..0.19.8"
    )
    command.add_argument("--findings", metavar="A,B", help="only these findings (default: all of the package)")
    command.add_argument("--bisect", metavar="A,B", help="find the releases in which these findings' states change")
    how = command.add_mutually_exclusive_group()
    how.add_argument("--scripts", action="store_true", help="run the findings' scripts alone, and no cases")
    how.add_argument("--cases", action="store_true", help="judge by cases alone, also findings that have a script")
    command.add_argument(
        "--whole-environment",
        action="store_true",
        help="give each release a virtual environment with its own dependencies (default: the release alone)",
    )
    command.add_argument("--output", type=Path, metavar="FILE", help="the table (default: versions.json by the store)")
    command.add_argument("--show", type=Path, metavar="FILE", help="print the table of an earlier run, and run nothing")
    command.add_argument("--store", default="versions.db", metavar="URL", help="the store (default: versions.db)")
    for name, keywords in OPTIONS.items():
        if name not in OURS:
            command.add_argument(name, **keywords)
    command.add_argument("-k", metavar="EXPRESSION", help="run only cases whose id matches, as in pytest")
    command.set_defaults(call=versions)


def versions(options: argparse.Namespace) -> int:
    """Installs each release of a package into a folder of its own over the present environment, judges the findings of
    that package in it by their scripts or by cases, and prints in which releases each is right or wrong. A release that
    does not install, or cannot be imported beside the present PyTorch, could not be judged; nor could a finding whose
    script takes longer than --case-timeout. The exit status is 1 if no
    release could be, or a bisection found no change."""
    if options.show:
        if options.releases:
            raise UserError("--show prints a table and runs nothing; leave out the releases, or --show")
        show(model.read(options.show))
        return 0
    from harness.store import StoreError

    before = signal.signal(signal.SIGTERM, _terminated)  # the installations and sessions that run end with it
    try:
        return _run(options)
    except StoreError as error:
        raise UserError(str(error)) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt


def _run(options: argparse.Namespace) -> int:
    from harness.store import command
    from harness.versions import run

    wanted, chosen = _wanted(options)
    scripted = [finding for finding in chosen if findings.script(finding) and not options.cases]
    others = [finding for finding in chosen if finding not in scripted]
    if options.scripts and not scripted:
        raise UserError(f"no such finding of {wanted.package} has a script; leave out --scripts to judge by cases")
    if options.scripts:
        chosen, others = scripted, []
    output = options.output or _beside(options.store)
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: the folder {output.parent} does not exist")
    plan = run.Plan(
        wanted,
        tuple(scripted),
        tuple(others),
        None if options.scripts else _session(options, wanted.package, others),
        options.store,
        command(["plumbline", *sys.argv[1:]]),
        options.whole_environment,
        options.case_timeout or findings.SECONDS,
    )
    console = Console()
    runner = run.Runner(plan, lambda line: console.print(escape(line)))
    if options.bisect is None:
        found = runner.table()
        code = 0 if _judged(found) else NONE_JUDGED
    else:
        found = runner.result([runner.bisect(finding) for finding in chosen])
        code = 0 if all(_changes(row) for row in found.findings) else NONE_JUDGED
    model.write(output, found)
    show(found)
    console.print(escape(f"table: {output} (plumbline versions --show {output})"))
    return code


def _wanted(options: argparse.Namespace) -> tuple[Asked, list[Finding]]:
    """The releases and the findings that the user names."""
    if not options.releases:
        raise UserError(f"name a package and its releases; {EXAMPLE}")
    from harness.versions import run

    run.known(options.releases.partition("==")[0].strip())
    if options.findings is not None and options.bisect is not None:
        raise UserError("--bisect names the findings to look for; leave out --findings")
    named = options.bisect if options.bisect is not None else options.findings
    wanted = parse(options.releases)
    if options.bisect is not None and len(wanted.versions) < 2:
        raise UserError("a bisection takes a range of releases, such as deepspeed==0.19.2..0.19.8")
    if named is None:
        return wanted, [finding for finding in findings.read() if wanted.package in run.libraries(finding)]
    every = {finding.id: finding for finding in findings.read()}
    chosen = [every[catalog.known(name.strip(), every, "finding")] for name in named.split(",")]
    for finding in chosen:
        if wanted.package not in run.libraries(finding):
            raise UserError(f"{finding.id} was seen in {', '.join(run.libraries(finding))}, not in {wanted.package}")
        if options.bisect is not None and not (
            (findings.script(finding) and not options.cases) or run.options_of([finding])
        ):
            raise UserError(f"{finding.id} has neither a script nor cases that show it on a CPU")
    return wanted, chosen


def _beside(store: str) -> Path:
    """The file beside a store; in the current folder if the store is a server's."""
    path = store.removeprefix("sqlite:///")
    return Path("versions.json") if "://" in path else Path(path).with_name("versions.json")


def _session(options: argparse.Namespace, package: str, by_cases: list[Finding]) -> tuple[str, ...] | None:
    """The options of each release's session: the user's; without any, the cases of the findings that are named, or of
    the package's engines. None if no cases are needed."""
    from harness.versions import run

    given, chosen = list[str](), dict[str, Any]()
    for name in OPTIONS:
        value = None if name in OURS else getattr(options, name[2:].replace("-", "_"))
        given += words(name, value)
        chosen[name] = value
    if options.k is not None:
        given += ["-k", options.k]
    names = [tuple(chosen[name].split(",")) if chosen[name] else () for name in ("--topics", "--engines", "--measures")]
    topics, engines, measures = names
    if not options.add_engine:  # whose module only the session finds
        cases.cards(cases.Request(topics, engines, measures=measures))  # tells an unknown name before it installs
    asked = any(chosen[name] is not None for name in CHOOSING) or options.k is not None
    if not asked and (options.findings is not None or options.bisect is not None):
        needed = run.options_of(by_cases)
        return (*needed, *given) if needed else None
    default = [] if engines else run.engines(package)
    return (*given, f"--engines={','.join(default)}") if default else tuple(given)


def _judged(found: Versions) -> bool:
    cells = any(cell.state != UNKNOWN for row in found.findings for cell in row.cells.values())
    return cells or any(release.judged for release in found.releases)


def _changes(row: FindingRow) -> bool:
    return {cell.state for cell in row.cells.values()} >= {RIGHT, WRONG}


def show(found: Versions) -> None:
    """Prints the table: findings and the releases in which each is right or wrong, then cases whose verdict changed
    although no finding covers that, then why the rest could not be judged."""
    console, notes = Console(), list[str]()
    names = [release.version for release in found.releases]
    if found.findings:
        listed = table("finding", *names, "", title=f"{found.package}: findings by release")
        for row in found.findings:
            cells = []
            for version in names:
                cell = row.cells.get(version)
                if cell is None:
                    cells.append("")
                    continue
                if cell.state == UNKNOWN and cell.reason not in [release.reason for release in found.releases]:
                    notes.append(f"{row.finding} in {version}: {cell.reason}")
                cells.append(LOOKS.get(cell.state, "?"))
            listed.add_row(row.finding, *cells, row.summary)
        console.print(listed)
    if found.cases:
        listed = table("case", "measure", *names, title="Cases whose verdict changed, which no finding covers")
        for case in found.cases:
            listed.add_row(case.case, case.measure, *(case.verdicts.get(version, "") for version in names))
        console.print(listed)
    notes = [f"{release.version}: {release.reason}" for release in found.releases if release.reason] + notes
    for release in found.releases:
        notes += [f"{release.version}: {count} × {text}" for text, count in release.errors.items()]
    if notes:
        console.print("[bold]could not be judged[/]")
        for note in notes:
            console.print(f"  {escape(note)}")
