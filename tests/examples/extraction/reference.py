"""The same over all completions at once: one scan of a joined text."""

import re
from collections.abc import Mapping
from typing import Any

from harness.spec import Function, Topology, Workload


def build(workload: Workload, topology: Topology, strict: bool) -> Function:
    pattern = re.compile(r"#### (\d+)|(\n)" if strict else r"(\d+)|(\n)")

    def extract(inputs: Mapping[str, Any]) -> dict[str, Any]:
        found = [""]
        for number, end in pattern.findall("\n".join(inputs["completions"])):
            found[-1:] = [found[-1], ""] if end else [number]
        right = [answer == truth for answer, truth in zip(found, inputs["answers"], strict=True)]
        return {"extracted": found, "right": right, "accuracy": sum(right) / len(right)}

    return extract
