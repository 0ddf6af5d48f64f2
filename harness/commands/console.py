"""What every command prints with: a console, a table, and the error of a user's mistake."""

import sys

import rich.console
from rich.table import Column, Table

PIPED = 10_000  # columns: rich truncates wider output, and assumes 80 for a file or pipe


class UserError(Exception):
    """One line that says what to do."""


class Console(rich.console.Console):
    """Never truncates output to a file or pipe, and does not interpret names as markup."""

    def __init__(self) -> None:
        super().__init__(width=None if sys.stdout.isatty() else PIPED, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def table(*columns: str, title: str | None = None) -> Table:
    """Long names wrap in a narrow terminal."""
    return Table(*(Column(name, overflow="fold") for name in columns), title=title, title_justify="left")
