"""``plumbline run`` and ``plumbline plan``."""

import argparse

from harness.options import OPTIONS, words
from harness.plugin import SUITES


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("run", help="run the suites, all topics or some", description=run.__doc__)
    _add_options(command)
    command.set_defaults(call=run, session=True)

    command = commands.add_parser("plan", help="print the cases and measures of such a run", description=plan.__doc__)
    _add_options(command)
    command.set_defaults(call=plan)


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("topic", nargs="*", help="topic names, as with --topics (default: all)")
    for name, keywords in OPTIONS.items():
        command.add_argument(name, **keywords)
    command.add_argument("-k", metavar="EXPRESSION", help="run only cases whose id matches, as in pytest")


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
        arguments += words(name, getattr(options, name[2:].replace("-", "_")))
    if options.k is not None:
        arguments += ["-k", options.k]
    return int(pytest.main(arguments))
