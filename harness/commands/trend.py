"""``plumbline trend``."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

from rich.markup import escape

from harness.commands.compare import changed, names
from harness.commands.console import Console, UserError, table
from harness.options import helped

if TYPE_CHECKING:
    from harness.history import Alarm

LAST = 7  # runs: the alarms of a week of nights


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "trend",
        help="find the runs at which figures changed their level; exit code 1 if one did lately",
        description="Looks for change points in the figures of all runs, each machine by itself. Exits with 1 if a "
        "figure became worse within the last N of its runs. Needs pip install 'plumbline[trend]'.",
    )
    command.add_argument("--store", default="plumbline.db", **helped("--store"))
    command.add_argument("--topics", metavar="A,B", help="look at these topics only")
    command.add_argument("--engines", metavar="A,B", help="look at these engines only")
    command.add_argument(
        "--last", type=int, default=LAST, metavar="N", help=f"how long a change is new (default: {LAST})"
    )
    command.add_argument("--format", choices=("table", "json"), default="table", help="the format (default: table)")
    command.set_defaults(call=trend)


def trend(options: argparse.Namespace) -> int:
    """Prints the first run after each change, and what changed with it."""
    from harness.history.series import environments, series
    from harness.history.trend import recent
    from harness.history.trend import trend as alarms
    from harness.judge.shift import MissingOtavaError
    from harness.store import Store, StoreError

    if options.last < 1:
        raise UserError(f"--last must be at least 1, not {options.last}")
    topics, engines = names(options.topics), names(options.engines)
    try:
        store = Store.open(options.store, create=False)
        known = series(store)
        # The engines beside an asked one are its control, so that they are looked at too.
        family = [each for each in known if not topics or each.topic in topics]
        found = [
            alarm for alarm in alarms(family, environments(store)) if not engines or alarm.series.engine in engines
        ]
    except (StoreError, MissingOtavaError) as error:
        raise UserError(str(error)) from None
    if options.format == "json":
        print(json.dumps([asdict(alarm) for alarm in found], indent=1))
    else:
        _print(found, len(family))
    return int(any(not alarm.improved and recent(alarm, options.last) for alarm in found))


def _print(found: "Sequence[Alarm]", family: int) -> None:
    console = Console()
    for run, group in groupby(found, key=lambda alarm: alarm.run):
        alarms = list(group)
        (started,) = {point.started[:10] for point in alarms[0].series.points if point.run == run}
        console.print(f"since run {run} ({started})", style="bold", markup=False)
        if alarms[0].environment:
            console.print(changed(alarms[0].environment))
        else:
            console.print("its environment is that of the run before it", markup=False)
        listed = table("level", "case", "figure", "before", "after", "change", "p")
        for alarm in alarms:
            series = alarm.series
            ratio = f"{alarm.after / alarm.before - 1:+.2%}" if alarm.before else ""
            level = "[green]better[/]" if alarm.improved else "[red]worse[/]"
            figures = (f"{figure:.6g} {series.unit}".rstrip() for figure in (alarm.before, alarm.after))
            cells = (series.case, f"{series.measure} {series.quantity}", *figures, ratio, f"{alarm.p:.1g}")
            listed.add_row(level, *map(escape, cells))
        console.print(listed)
    worse = sum(not alarm.improved for alarm in found)
    console.print(f"{worse} worse, {len(found) - worse} better, of {family:,} series", markup=False)
