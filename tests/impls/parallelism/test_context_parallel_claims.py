"""Claims of context parallelism follow the measurements."""

from typing import Any
from unittest.mock import patch

import pytest
from torch import Tensor

from impls.parallelism.context_parallel import claims
from impls.parallelism.context_parallel.layouts import Block


@pytest.mark.parametrize("name", ["activations", "sum_of_softmaxes"])
def test_claim_gives_a_measurement_of_its_own_name(name: str) -> None:
    measurement = getattr(claims, name)([])
    assert (measurement.measure, measurement.quantity) == ("claim", name)
    assert measurement.detail["arithmetic"]


def records(**bytes_kept: float) -> list[dict[str, Any]]:
    common = {"engine": "reference", "measure": "memory", "quantity": "saved", "dtype": "fp32", "variant": "ring"}
    return [{**common, "topology": name, "value": value} for name, value in bytes_kept.items()]


@pytest.mark.parametrize(
    ("kept", "status"),
    [({"cp2": 8.0, "cp4": 4.0}, "reproduced"), ({"cp2": 8.0, "cp4": 8.0}, "contradicted"), ({}, "out of reach here")],
)
def test_activations_claim_follows_the_records(kept: dict[str, float], status: str) -> None:
    assert claims.activations(records(**kept)).detail["status"] == status


def test_a_sum_of_softmaxes_is_told_from_the_merge() -> None:
    measurement = claims.sum_of_softmaxes([])
    assert measurement.detail["status"] == "contradicted"
    assert measurement.detail["merged"] < measurement.value / 1e6


@pytest.mark.parametrize(("power", "status"), [(2, "reproduced"), (1, "contradicted")])
def test_cost_claim_follows_the_measurement(power: int, status: str) -> None:
    with patch.object(claims, "_seconds", lambda query, *rest, causal: (query.shape[2] ** power, 0.0)):
        assert claims.quadratic_cost([]).detail["status"] == status


@pytest.mark.parametrize(("backward", "status"), [(2.5, "reproduced"), (1.0, "contradicted")])
def test_recomputation_claim_follows_the_measurement(backward: float, status: str) -> None:
    with patch.object(claims, "_seconds", lambda *tensors, causal: (1.0, backward)):
        assert claims.recomputation([]).detail["status"] == status


def test_balance_claim_follows_the_measured_seconds() -> None:
    def seconds(query: Tensor, key: Tensor, value: Tensor, d_output: Tensor, causal: bool) -> tuple[float, float]:
        return float(Block(slice(0, query.shape[2]), slice(0, key.shape[2]), causal).pairs), 0.0

    with patch.object(claims, "_seconds", seconds):
        measurement = claims.balance([])
    assert measurement.detail["status"] == "reproduced"
    assert measurement.detail["measured"] == measurement.detail["counted"]
    with patch.object(claims, "_rank_seconds", lambda layout, rank, lengths: 1.0 + rank):
        assert claims.balance([]).detail["status"] == "contradicted"
