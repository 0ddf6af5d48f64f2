"""``plumbline list``."""

import argparse

from harness.commands.console import Console, table
from harness.plan import cases
from harness.spec.named import NAMED


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("list", help="list topics with variants and engines, and the named workloads")
    command.set_defaults(call=list_)


def list_(options: argparse.Namespace) -> int:
    """Lists all names that the command line accepts."""
    console = Console()
    topics = table("topic", "variants", "engines", "topologies", title="Topics")
    for card in cases.cards(cases.Request()).values():
        topics.add_row(card.name, "\n".join(card.variants), "\n".join(card.adapted), " ".join(card.topologies))
    console.print(topics)
    workloads = table("workload", "parameters", "batch × sequence", "optimizer", "dtype", title="Workloads")
    for name, work in NAMED.items():
        size = f"{work.batch_size} × {work.sequence_length}"
        workloads.add_row(name, f"{work.model.parameters / 1e6:,.1f} M", size, work.optimizer, work.dtype)
    console.print(workloads)
    return 0
