"""Where an environment keeps what its engines compile."""

import os
import sys
from pathlib import Path


def folder() -> Path:
    """TORCH_EXTENSIONS_DIR, else one of this environment's own. What is compiled names the headers of its environment:
    in a folder that several share they would compile it anew in turns, for minutes."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix) / "torch_extensions")
