"""A finding as its file has it."""

from pathlib import Path

from harness import findings
from harness.spec import Finding

RECORD = """
engine = "deepspeed"
kind = "more memory"
title = "ZeRO-3 keeps a second copy of the weights"
consequence = "A rank holds 4 bytes a parameter of its part more than it needs."
cause = "stage3.py compares a device with a text."
silent = true
default = true
seen = ["deepspeed 0.19.8"]
issue = "deepspeedai/DeepSpeed#7700"
review = 2999-01-01
"""
SYMPTOM = """
[[symptoms]]
case = "zero?-deepspeed-*"
measure = "memory"
quantity = "peak"
band = [1.2, 1.4]
"""


def read(text: str, folder: Path, name: str = "deepspeed_copy") -> Finding:
    (folder / f"{name}.toml").write_text(text)
    (found,) = (finding for finding in findings.read(folder) if finding.id == name)
    return found
