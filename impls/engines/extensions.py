"""The folder in which an environment keeps its engines' compiled code."""

import os
import sys
from pathlib import Path


def folder() -> Path:
    """TORCH_EXTENSIONS_DIR, or a folder of this environment. Compiled code depends on the headers of its environment:
    environments that share a folder would recompile it in turns, for minutes each time."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix) / "torch_extensions")
