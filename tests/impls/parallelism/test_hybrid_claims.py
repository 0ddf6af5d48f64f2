"""Arithmetic on published figures of engines that can no longer be installed."""

import pytest

from impls.parallelism.hybrid_3d import claims
from impls.parallelism.pipeline_parallel.claims import pipedream


def test_mt_nlg_s_rates_follow_from_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = claims.mt_nlg([])
    assert found.detail["status"] == "out of reach here"
    assert found.detail["arithmetic"].endswith("126, 120, 113 TFLOP/s; they hold")
    monkeypatch.setitem(claims.SECONDS, 2800, 60.0)
    assert claims.mt_nlg([]).detail["arithmetic"].endswith("not what was published for [2800]")


def test_alpa_s_ratios_say_that_deepspeed_slows_down() -> None:
    assert "DeepSpeed's fall to 0.72" in claims.alpa([]).detail["arithmetic"]


def test_pipedream_s_vgg_16_has_the_parameters_that_torchvision_s_has() -> None:
    assert "of 138 M parameters 124 M are dense" in pipedream([]).detail["arithmetic"]
