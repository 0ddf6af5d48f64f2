"""``plumbline findings``."""

import argparse
from collections.abc import Iterable

from rich.markup import escape
from rich.table import Column, Table

from harness import catalog, findings
from harness.commands.console import Console, UserError, table
from harness.plan import cases
from harness.spec import Finding
from harness.spec.finding import KINDS


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "findings", help="what is known to be wrong or costly in the engines", description=show.__doc__
    )
    command.add_argument("id", nargs="?", metavar="ID", help="explain this finding (default: list them)")
    command.add_argument("--kind", choices=KINDS, metavar="KIND", help=f"only this kind: {', '.join(KINDS)}")
    command.add_argument("--engine", metavar="NAME", help="only findings of this library")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--script", action="store_true", help="print the finding's standalone script")
    what.add_argument("--check", action="store_true", help="run the scripts: still there, gone, or cannot be judged")
    command.set_defaults(call=show)


def show(options: argparse.Namespace) -> int:
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
    console = Console()
    if options.id:
        for finding in chosen:
            console.print(f"[bold]{finding.id}[/]: {escape(finding.title)}")
            fields = Table.grid(Column(style="dim", no_wrap=True), Column(overflow="fold"), padding=(0, 2))
            for name, text in _explained(finding).items():
                fields.add_row(name, escape(text))
            console.print(fields)
        return 0
    listed = table("kind", "id", "title", "seen in")
    for finding in chosen:
        listed.add_row(finding.kind, finding.id, escape(finding.title), _releases(finding.seen))
    console.print(listed)
    console.print("plumbline findings ID explains one, with the cases and the script that show it.")
    return 0


def _releases(named: Iterable[str]) -> str:
    """Releases such as "deepspeed 0.19.7", with each library named once."""
    libraries: dict[str, list[str]] = {}
    for release in named:
        library, _, version = release.partition(" ")
        libraries.setdefault(library, []).append(version)
    return "; ".join(f"{library} {', '.join(versions)}" for library, versions in libraries.items())


def _explained(finding: Finding) -> dict[str, str]:
    """Every field of a finding in plain words, and the commands that show it."""
    noticed = "silent: no warning, no error" if finding.silent else "not silent: the engine warns or fails"
    met = "a user meets it without any unusual option" if finding.default else "only with options that are not defaults"
    facts = {
        "kind": finding.kind,
        "consequence": finding.consequence,
        "cause": finding.cause,
        "noticed": f"{noticed}; {met}",
        "seen in": _releases(finding.seen),
        "right in": _releases(finding.right),
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
    console, gone = Console(), 0
    for number, (finding, path) in enumerate(runs, start=1):
        console.print(f"{number} of {len(runs)} {finding.id}", end=" ")
        state, reason = findings.check(path)
        if state == findings.GONE and findings.repaired(finding):
            reason = "as its record says"
        elif state == findings.GONE:
            gone += 1
            here = ", ".join(f"{name} {version}" for name, version in findings.installed(finding).items())
            reason = f"here with {here}; add these versions to the record's field right"
        console.print(f"{state}{': ' if reason else ''}{escape(reason)}")
    return 1 if gone else 0
