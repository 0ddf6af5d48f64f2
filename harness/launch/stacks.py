"""Where a rank stands, by the stacks that it wrote."""

import linecache
import re


def collective(stack: str) -> str:
    """The place where a stack waits for other ranks; empty if it does not wait. A collective appears under PyTorch's
    own function name. For an asynchronous collective, Python sees only the line that waits, and nothing in a backward
    pass."""
    for line in stack.splitlines():
        if "distributed_c10d.py" in line and " in " in line:
            name = line.rsplit(" in ", 1)[1].strip()
            if name not in ("wrapper", "_wait_for_work"):
                return name
    serving = next((thread for thread in stack.split("\n\n") if " in serve\n" in thread), "")
    if innermost := re.search(r'File "(.+)", line (\d+) in (\S+)', serving):
        file, number, function = innermost.groups()
        source = linecache.getline(file, int(number)).strip()
        if re.search(r"\bwait(_tensor)?\(", source):
            return repr(source)
        if function == "_engine_run_backward":
            return "a backward pass, or a collective inside it"
    return ""
