"""The command ``plumbline``: shows what is installed, runs the suites and reads the results."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from harness.commands import COMMANDS
from harness.commands.console import UserError
from harness.commands.doctor import installed

INTERRUPTED, ERROR, USAGE = 2, 3, 4  # pytest's exit codes
EPILOG = """examples:
  plumbline doctor                              what is installed and which engines will run
  plumbline plan zero --depth quick             the cases of a run and their measures
  plumbline run zero --engines reference,deepspeed
  plumbline run --workload mine.toml --measures parity,throughput
  plumbline nightly nightly.toml                run, compare with last night, report, publish and notify
  plumbline findings --engine deepspeed         what is known to be wrong or costly
  plumbline records --format csv > figures.csv
  plumbline versions deepspeed==0.19.2..0.19.8 --topics zero --measures parity,memory
  plumbline report --run 20260101-120000-abcdef
  plumbline compare latest~1                    what changed between two runs
  pytest suites/ -k "zero3 and deepspeed"       the same cases, with all of pytest's own options
exit codes are pytest's: 0 all passed, 1 some failed, 2 interrupted, 3 no report or another error, 4 wrong usage,
5 no case matches
"""


def main(arguments: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the locale may not be Unicode: "×" would fail
    options = argparse.Namespace(session=False)
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
        return ERROR if options.session else 0
    return code


class _Parser(argparse.ArgumentParser):
    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # flush now: a closed pipe then fails in main, not when Python exits
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        """argparse exits with 2, which is pytest's code for an interrupted session; this exits with pytest's usage
        error."""
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}; {self.prog} --help tells more\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="plumbline",
        description="Checks and measures training engines against readable references.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"plumbline {installed('plumbline')}")
    parser.set_defaults(parser=parser, session=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"harness.commands.{name}").add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
