"""The GPUs of this machine as PyTorch sees them: ranks use no others, whatever nvidia-smi lists."""

import functools
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.spec.command import NoAnswer, answer

# Runs in its own process: the query imports PyTorch, which takes seconds, and initialises CUDA, which does not survive
# a fork.
ASK = """
import json, torch
places = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
found = [torch.cuda.get_device_properties(place) for place in places]
print(json.dumps({"torch": torch.__version__, "gpus": [[gpu.name, f"{gpu.major}.{gpu.minor}"] for gpu in found]}))
"""
LIST = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
DRIVER = Path("/dev/nvidiactl")
PATIENCE = {"nvidia-smi": 15.0, "PyTorch": 120.0}  # seconds


class Gpu(NamedTuple):
    name: str
    capability: str  # such as "9.0"


@dataclass(frozen=True)
class Found:
    """``driver``: its version, or None. ``note``: one line on the reason if expected GPUs are missing."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    note: str = ""


@functools.cache
def found() -> Found:
    """Queried once per process, and only if there is a sign of a GPU."""
    if not (shutil.which(LIST[0]) or DRIVER.exists()):
        return Found()
    try:
        listed, trouble = answer(LIST, PATIENCE["nvidia-smi"]).splitlines(), ""
    except NoAnswer as why:
        listed, trouble = [], str(why)
    driver = listed[0] if listed else None
    try:
        # -P: a file torch.py in the current folder must not replace PyTorch.
        asked = json.loads(answer((sys.executable, "-P", "-W", "ignore", "-c", ASK), PATIENCE["PyTorch"]))
    except NoAnswer as why:
        return Found(driver=driver, note=f"PyTorch cannot list the GPUs ({why}): CPU ranks")
    if asked["gpus"]:
        return Found(tuple(Gpu(*gpu) for gpu in asked["gpus"]), driver)
    count = f"nvidia-smi lists {len(listed)} GPU{'s'[: len(listed) != 1]}"
    seen = f"but PyTorch {asked['torch']} sees none"
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        seen += f" with CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r}"
    return Found(driver=driver, note=f"{trouble or count}, {seen}: CPU ranks")


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that a session may use; empty if there are none."""
    return found().gpus


def visible(count: int, environment: Mapping[str, str]) -> str:
    """CUDA_VISIBLE_DEVICES for ranks that use the first ``count`` of the GPUs in this environment."""
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    places = map(str, range(count)) if shown is None else shown.split(",")
    return ",".join(list(places)[:count])
