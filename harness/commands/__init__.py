"""One file per command of ``plumbline``; each has ``add(commands)``, which describes the command to argparse.

A command's function gets the parsed options and returns the exit code. A command that runs cases sets ``session``:
a reader that closes its pipe early has then cut it short, which is an error.
"""

# in the order of --help
COMMANDS = (
    "doctor",
    "listing",
    "run",
    "report",
    "records",
    "findings",
    "versions",
    "completion",
)
