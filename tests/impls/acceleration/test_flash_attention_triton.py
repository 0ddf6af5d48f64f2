"""The Triton kernels under Triton's interpreter, against float64 by the noise floor."""

import json
import subprocess
import sys

import pytest

from impls.acceleration.flash_attention import CARD

EVERY = CARD.engines["triton"].variants
FEW = ("fa2_causal", "fa2_softcap", "fa2_sinks", "fa2_varlen")


@pytest.mark.parametrize(("dtype", "variants"), [("fp32", EVERY), ("bf16", FEW)])
def test_kernels_are_attention_with_every_rule(dtype: str, variants: tuple[str, ...]) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "tests.impls.acceleration.interpreted", ",".join(variants), dtype]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    found = {each["variant"]: each["ratios"] for each in map(json.loads, run.stdout.splitlines())}
    assert found.keys() == {*variants}
    assert {name: ratios for name, ratios in found.items() if not max(ratios.values()) <= 1} == {}
