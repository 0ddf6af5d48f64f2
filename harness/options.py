"""The command line's options, one truth for pytest and for ``plumbline run``."""

from typing import Any

from harness.launch.base import LAUNCHERS
from harness.measures import MEASURES
from harness.plan.depth import DEPTHS

# option → (argparse keywords); names with commas take several.
OPTIONS: dict[str, dict[str, Any]] = {
    "--gpus": {"type": int, "metavar": "N", "help": "GPUs to use; 0: gloo ranks on the CPU (default: all there are)"},
    "--ranks": {"type": int, "metavar": "N", "help": "at most N ranks a case (default: as many as GPUs, 8 on a CPU)"},
    "--topics": {"metavar": "A,B", "help": "only these topics (plumbline list names them)"},
    "--engines": {"metavar": "A,B", "help": "only these engines"},
    "--workload": {"metavar": "NAME|FILE", "help": "the work: named ones or TOML files, separated by commas"},
    "--topologies": {
        "metavar": "A,B",
        "help": "mesh sizes such as dp2,tp2 or dp2tp2, of topics with these axes (default: each its own)",
    },
    "--dtypes": {"metavar": "A,B", "help": "precisions: fp64, fp32, bf16"},
    "--depth": {
        "choices": DEPTHS,
        "help": "how much of the topics' own grids: quick (each engine and variant once; parity and memory), default "
        "(every pair of variant, engine, topology and work; timed rounds) or full (all of it)",
    },
    "--measures": {"metavar": "A,B", "help": f"only these: {', '.join(MEASURES)}"},
    "--store": {
        "metavar": "URL",
        "help": "where records go: a file, sqlite:///… or postgresql://… (default: plumbline.db)",
    },
    "--report": {"metavar": "DIR", "help": "write the HTML report there (default: report)"},
    "--add-engine": {
        "action": "append",
        "metavar": "TOPIC:NAME=module:function",
        "help": "add an engine for this session; may be given several times",
    },
    "--launcher": {"choices": sorted(LAUNCHERS), "help": "how ranks are started (default: local, on this machine)"},
    "--case-timeout": {"type": float, "metavar": "S", "help": "seconds a case may take (default: 120)"},
}
