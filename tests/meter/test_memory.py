"""The memory meters agree with arithmetic and with each other."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.meter import memory

Ranks = Callable[..., list[Any]]

HELD = {
    "one tensor": 2,
    "and a view": 2,
    "and a copy": 4,
    "without the first": 2,
    "peak": 4,
    "peak after reset": 2,
    "peak of a temporary": 5,
    "from a new start": 1,
}
FALLBACK = """
import json
from harness.meter import memory
memory.install()
from tests.meter import jobs
print(json.dumps([jobs.held_and_peak(), jobs.training()]))
"""
# AdamW in fp32: weights, two moments and the batch; gradients are released after the step.
WEIGHTS, BATCH = 2 * 512 * 512 * 4, 256 * 512 * 4


def fallback(folder: Path, compiler: str) -> Any:
    """The same job in an environment where no allocator can be compiled."""
    environment = os.environ | {"CXX": compiler, "XDG_CACHE_HOME": str(folder)}
    command = [sys.executable, "-c", FALLBACK]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fallback(tmp_path_factory.mktemp("cache"), "/nonexistent/c++")


def test_the_counting_allocator_agrees_with_arithmetic_to_the_byte(ranks: Ranks) -> None:
    (found,) = ranks("held_and_peak", 1)
    assert found == HELD | {"meter": "counting allocator"}


def test_the_fallback_agrees_with_arithmetic_and_says_that_it_is_one(without_compiler: Any) -> None:
    held, _ = without_compiler
    assert held.pop("meter").startswith("dispatch mode over live storages (")
    assert held == HELD


def test_a_training_step_holds_weights_and_moments_on_either_meter(ranks: Ranks, without_compiler: Any) -> None:
    (counted,), (_, watched) = ranks("training", 1), without_compiler
    assert counted["states"] == pytest.approx(3 * WEIGHTS + BATCH, rel=1e-4)
    assert watched["states"] == pytest.approx(3 * WEIGHTS + BATCH, rel=1e-4)
    assert watched["peak"] == pytest.approx(counted["peak"], rel=0.01)


def test_a_widened_products_copies_are_not_the_engines(ranks: Ranks) -> None:
    (found,) = ranks("widened_product", 1)
    assert found == {"held": 60_000, "peak": 60_000, "bytes": 60_000}


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("/bin/false", "false failed with exit status 1"),
        ("/bin/sh -c 'sleep 600'", "sh gave no answer in 1 s"),
        ("/nonexistent/c++", "the C++ compiler /nonexistent/c++, named by CXX, does not exist"),
    ],
)
def test_a_compiler_that_fails_silently_or_hangs_or_is_missing_is_named(
    compiler: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(memory, "COMPILE", 1.0)
    with pytest.raises(RuntimeError, match=re.escape(said)):
        memory.compile_allocator()


def test_a_compiler_that_is_missing_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    fallback(tmp_path, "/nonexistent/c++")
    assert not (tmp_path / "plumbline").exists()


STREAMS = """
import torch
from harness.meter.memory import gauge
with gauge() as held:
    tensor = torch.ones(1 << 20, device="cuda")
    other = torch.cuda.Stream()
    with torch.cuda.stream(other):
        torch.cuda._sleep(10**8)
        tensor.record_stream(other)
    del tensor
    print(held.current())
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams are CUDA's")
def test_memory_of_another_stream_is_not_held_once_it_is_free() -> None:
    done = subprocess.run([sys.executable, "-c", STREAMS], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 0
