"""The command line's options, shared by pytest and ``plumbline run``."""

from typing import Any

from harness.launch.base import LAUNCHERS
from harness.measures import MEASURES
from harness.plan.depth import DEPTHS
from harness.spec import DTYPES

# option → argparse keywords; an option with a metavar "A,B" takes several names.
OPTIONS: dict[str, dict[str, Any]] = {
    "--gpus": {"type": int, "metavar": "N", "help": "number of GPUs; 0: gloo ranks on the CPU (default: all GPUs)"},
    "--ranks": {"type": int, "metavar": "N", "help": "at most N ranks per case (default: one per GPU, or 8 on a CPU)"},
    "--topics": {"metavar": "A,B", "help": "run only these topics (plumbline list names them)"},
    "--engines": {"metavar": "A,B", "help": "run only these engines"},
    "--workload": {"metavar": "NAME|FILE", "help": "workloads: names or TOML files, separated by commas"},
    "--topologies": {
        "metavar": "A,B",
        "help": "mesh sizes such as dp2,tp2 or dp2tp2, for topics with these axes (default: each topic's own)",
    },
    "--dtypes": {"metavar": "A,B", "help": f"precisions: {', '.join(DTYPES)}"},
    "--depth": {
        "choices": DEPTHS,
        "help": "part of the topics' grids to run: quick (each engine and variant once; parity and memory), default "
        "(every pair of variant, engine, topology and workload; timed rounds) or full (everything)",
    },
    "--measures": {"metavar": "A,B", "help": f"take only these measures: {', '.join(MEASURES)}"},
    "--store": {
        "metavar": "URL",
        "help": "the store of records: a file, sqlite:///… or postgresql://… (default: plumbline.db)",
    },
    "--baseline": {
        "metavar": "RUN",
        "help": "fail what regressed since this run of the store: its id, latest, latest~1, or dates "
        "(2026-11-01..2026-11-20)",
    },
    "--resume": {"metavar": "RUN", "help": "continue this run of the store, which ended early, with the same options"},
    "--report": {"metavar": "DIR", "help": "the folder of the HTML report (default: report)"},
    "--single-file": {
        "action": "store_true",
        "help": "write the report as one file (default: its topics are files beside it, loaded when they are opened)",
    },
    "--add-engine": {
        "action": "append",
        "metavar": "TOPIC:NAME=module:function",
        "help": "add an engine for this session; may be repeated",
    },
    "--launcher": {
        "choices": sorted(LAUNCHERS),
        "help": "the launcher of ranks: local, on this machine (default); torchrun, on --hosts or a Slurm allocation; "
        "slurm, which submits a job, or uses the allocation that it is in; ray, in a running Ray cluster. On a cluster "
        "--gpus counts the GPUs of each node",
    },
    "--hosts": {"metavar": "A,B", "help": "the nodes of --launcher torchrun, reached by --remote-shell"},
    "--nodes": {
        "type": int,
        "metavar": "N",
        "help": "the number of nodes of --launcher slurm (default: of this allocation) or ray",
    },
    "--ranks-per-node": {
        "type": int,
        "metavar": "N",
        "help": "a case fills a node with N ranks before it takes the next (default: equal shares of all nodes)",
    },
    "--head": {"metavar": "ADDRESS", "help": "this machine's address for the nodes (default: found by its routes)"},
    "--remote-shell": {
        "metavar": "COMMAND",
        "help": "how --launcher torchrun runs a shell on a host (default: ssh -o BatchMode=yes)",
    },
    "--slurm": {"metavar": "OPTIONS", "help": "options for srun: --slurm='--partition=gpu --gres=gpu:8 --time=60'"},
    "--case-timeout": {"type": float, "metavar": "S", "help": "time limit of a case in seconds (default: 120)"},
}


def words(name: str, value: Any) -> list[str]:
    """An option as it is given on a command line, from the value that argparse has read: once for each item of a list,
    by its name alone if it is a switch, and not at all if it was left out."""
    values = value if isinstance(value, list) else [value]
    given = (one for one in values if one is not None and one is not False)
    return [name if one is True else f"{name}={one}" for one in given]


def helped(option: str) -> dict[str, Any]:
    """The keywords of an option that another command has too, with a default or a type of its own."""
    return {key: value for key, value in OPTIONS[option].items() if key in ("metavar", "help")}
