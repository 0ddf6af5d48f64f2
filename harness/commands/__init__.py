"""One file per command of ``plumbline``; each has ``add(commands)``, which describes the command to argparse.

A command's function gets the parsed options and returns the exit code. A command that runs cases sets ``session``:
a reader that closes its pipe early has then cut it short, which is an error.
"""

COMMANDS = (  # in the order of --help
    "doctor",
    "listing",
    "run",
    "nightly",
    "report",
    "records",
    "export",
    "compare",
    "trend",
    "publish",
    "submit",
    "findings",
    "versions",
    "completion",
)
