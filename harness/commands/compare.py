"""``plumbline compare``."""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from harness.commands.console import Console, UserError, table
from harness.options import helped

if TYPE_CHECKING:
    from harness.history import Change, Comparison

COLOURS = {"regressed": "red", "inconclusive": "yellow", "improved": "green"}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "compare",
        help="compare two runs, or two selections of runs; exit code 1 if something regressed",
        description="Each of BEFORE and AFTER is the id of a run, latest, latest~1 (the one before it), or dates as in "
        "2026-11-01..2026-11-20.",
    )
    command.add_argument("before", metavar="BEFORE", help="the earlier run or runs")
    command.add_argument("after", metavar="AFTER", nargs="?", default="latest", help="the later ones (default: latest)")
    command.add_argument("--store", default="plumbline.db", **helped("--store"))
    command.add_argument("--topics", metavar="A,B", help="compare only these topics")
    command.add_argument("--engines", metavar="A,B", help="compare only these engines")
    command.add_argument("--all", action="store_true", help="also list the figures that are the same")
    command.add_argument("--format", choices=("table", "json"), default="table", help="the format (default: table)")
    command.set_defaults(call=compare)


def compare(options: argparse.Namespace) -> int:
    from harness.history.compare import compare as compared
    from harness.history.select import select
    from harness.store import Store, StoreError

    try:
        store = Store.open(options.store, create=False)
        runs = store.runs()
        before, after = select(runs, options.before), select(runs, options.after)
        before = [run for run in before if run not in after]  # a range of dates may reach as far as the later run
        if not before:
            raise UserError(f"BEFORE {options.before} has no other runs than AFTER {options.after}; name others")
        found = compared(store, before, after, names(options.topics), names(options.engines))
    except StoreError as error:
        raise UserError(str(error)) from None
    if not found.changes:
        raise UserError("neither selection has a figure of this kind; plumbline records shows what there is")
    if options.format == "json":
        print(json.dumps(asdict(found), indent=1))
    else:
        _print(found, options.all)
    return int(any(change.verdict == "regressed" for change in found.changes))


def names(given: str | None) -> tuple[str, ...]:
    """The names, separated by commas; none if the option was left out."""
    return tuple(name.strip() for name in (given or "").split(",") if name.strip())


def _print(found: "Comparison", everything: bool) -> None:
    console = Console()
    console.print(f"before: {_listed(found.before)}\nafter:  {_listed(found.after)}", markup=False)
    if found.environment:
        console.print(changed(found.environment))
    else:
        console.print("the environment is the same", markup=False)
    shown = [change for change in found.changes if everything or change.verdict != "same"]
    if shown:
        listed = table("verdict", "case", "figure", "after ÷ before", "reason")
        for verdict, *cells in _rows(shown):
            listed.add_row(f"[{COLOURS.get(verdict, 'default')}]{verdict}[/]", *map(escape, cells))
        console.print(listed)
    counts = Counter(change.verdict for change in found.changes)
    console.print(", ".join(f"{count:,} {verdict}" for verdict, count in counts.items()), markup=False)


def _rows(changes: "Sequence[Change]") -> Iterator[tuple[str, str, str, str, str]]:
    """A row a change; one row for all figures of a case that come or go together."""
    together = Counter((each.case, each.verdict) for each in changes if each.verdict in ("gone", "new"))
    told = set[tuple[str, str]]()
    for each in changes:
        count = together[each.case, each.verdict]
        if count < 2:
            reason = " ".join(each.reason.split())
            yield each.verdict, each.case, f"{each.measure} {each.quantity}", _ratio(each.low, each.high), reason
        elif (each.case, each.verdict) not in told:
            told.add((each.case, each.verdict))
            yield each.verdict, each.case, f"{count} figures", "", ""


def changed(environment: dict[str, tuple[str, str]]) -> Table:
    listed = table("environment", "before", "after")
    for name, (before, after) in environment.items():
        listed.add_row(escape(name), escape(before), escape(after))
    return listed


def _listed(runs: tuple[str, ...]) -> str:
    return runs[0] if len(runs) == 1 else f"{len(runs)} runs, {runs[0]} to {runs[-1]}"


def _ratio(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
