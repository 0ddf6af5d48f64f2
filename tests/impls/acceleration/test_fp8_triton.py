"""The Triton kernels of FP8 in Triton's interpreter: their casts bit by bit, their products beside the reference's."""

import os
import subprocess
import sys

import pytest


def test_kernels_cast_as_defined_and_multiply_as_the_reference_does() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "tests.impls.acceleration.fp8_kernels"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr[-2000:]
