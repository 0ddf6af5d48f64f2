"""``plumbline completion``."""

import argparse

import shtab


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "completion",
        help="print the shell's completion script",
        description="For bash: plumbline completion bash > ~/.local/share/bash-completion/completions/plumbline",
    )
    command.add_argument("shell", choices=("bash", "zsh"))
    command.set_defaults(call=completion)


def completion(options: argparse.Namespace) -> int:
    """Prints the shell's completion script for everything that can follow ``plumbline``."""
    print(shtab.complete(options.parser, shell=options.shell))
    return 0
