"""``plumbline doctor``."""

import argparse
import sys
from importlib.metadata import PackageNotFoundError, version

from rich.markup import escape

from harness.commands.console import Console, table
from harness.plan import cases
from harness.spec import gpus
from harness.spec.requires import missing


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("doctor", help="show what is installed and which engines will run")
    command.set_defaults(call=doctor)


def doctor(options: argparse.Namespace) -> int:
    """Shows versions, hardware, and whether each engine of each topic will run."""
    console = Console()
    found = gpus.gpus()
    names = ", ".join(dict.fromkeys(f"{gpu.name}, capability {gpu.capability}" for gpu in found))
    console.print(f"Python {sys.version.split()[0]} · {len(found)} GPUs" + (f" ({names})" if found else ""))
    if not found:
        console.print(gpus.found().note or "No GPU: the suites run on CPU ranks (gloo).")
    versions = table("package", "version", title="Packages")
    for package in ("torch", "deepspeed", "megatron-core", "transformers", "trl", "triton", "psycopg"):
        versions.add_row(package, installed(package))
    console.print(versions)
    engines = table("topic", "engine", "variants", "", title="Engines")
    for card in cases.cards(cases.Request()).values():
        for name, engine in card.engines.items():
            reason = missing(engine, bool(found))
            state = f"[yellow]skipped: {escape(reason)}[/]" if reason else "[green]will run[/]"
            engines.add_row(card.name, name, " ".join(engine.variants or card.variants), state)
    console.print(engines)
    console.print(f"CPU memory is counted by: {_memory_meter()}")
    return 0


def installed(package: str) -> str:
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
