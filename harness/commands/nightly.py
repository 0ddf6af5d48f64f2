"""``plumbline nightly``."""

import argparse
from pathlib import Path

from harness.commands.console import UserError

EXIT_CODES = """exit codes: 0 all right; 1 failures, regressions or alarms; 2 interrupted; 3 a step broke; 4 wrong
usage; 5 no case matches. The worst of all steps counts."""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "nightly",
        help="run the suites and compare, report, publish and tell of the result",
        description=nightly.__doc__,
        epilog=EXIT_CODES,
    )
    command.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml", help="the night's configuration")
    command.add_argument("--resume", action="store_true", help="go on with the night that was killed, if there is one")
    command.add_argument("--example", action="store_true", help="print a configuration with comments")
    command.set_defaults(call=nightly, session=True)


def nightly(options: argparse.Namespace) -> int:
    """Runs the suites at full depth, stores and judges their figures beside those of earlier nights, writes the report
    and the site, and tells of the result."""
    from harness.nightly import config, lock, whole
    from harness.store import StoreError

    if options.example:
        print(config.example(), end="")
        return 0
    if options.config is None:
        raise UserError("name a configuration; plumbline nightly --example prints one")
    try:
        return whole.nightly(config.read(options.config), options.resume)
    except (StoreError, lock.Locked) as error:
        raise UserError(str(error)) from None
