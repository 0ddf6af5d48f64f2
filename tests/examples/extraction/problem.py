"""Completions that end with a right number, a wrong one, or none."""

import random
import re
from collections.abc import Mapping
from typing import Any

from harness.spec import Workload


def draw(workload: Workload, strict: bool) -> dict[str, Any]:
    """``completions`` and ``answers``, [batch_size] texts each."""
    chance = random.Random(workload.seed)
    answers = [str(chance.randrange(1000)) for _ in range(workload.batch_size)]
    endings = ("#### {}", "so it is {}.", "#### 1{}", "I do not know")
    completions = [f"First 3, then 4, {chance.choice(endings).format(answer)}" for answer in answers]
    return {"completions": completions, "answers": answers}


def plain(inputs: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    """One text at a time."""
    pattern = r"#### (\d+)" if strict else r"(\d+)"
    found = []
    for completion in inputs["completions"]:
        numbers = re.findall(pattern, completion)
        found.append(numbers[-1] if numbers else "")
    right = [answer == truth for answer, truth in zip(found, inputs["answers"], strict=True)]
    return {"extracted": found, "right": right, "accuracy": sum(right) / len(right)}
