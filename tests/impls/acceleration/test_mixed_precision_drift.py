"""The drift of bfloat16 weights without masters: stochastic rounding, and the end of training."""

import numpy as np
import pytest
import torch

from harness.judge.learning import result
from harness.spec import Topology
from impls.acceleration.mixed_precision_drift import CARD, claims, reference
from impls.acceleration.mixed_precision_drift.grid import DRIFT

SEEDS = 3


def test_stochastic_rounding_gives_one_of_the_two_neighbours_and_the_number_itself_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, generator=generator)
    draws = torch.stack([reference.rounded(x, generator).double() for _ in range(4000)])  # [draws, 50]
    step = 2.0 ** (x.abs().log2().floor() - 7).double()  # from one bfloat16 number to the next
    below = torch.floor(x.double() / step) * step
    assert bool(((draws == below) | (draws == below + step)).all())
    error = (draws.mean(0) - x.double()) / (step / 2 / len(draws) ** 0.5)  # in standard errors, at most
    assert error.abs().max() < 5


def test_stochastic_rounding_leaves_a_bfloat16_number_as_it_is() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -3.5, 2.0**-130, torch.inf, -torch.inf])
    for _ in range(20):
        assert torch.equal(reference.rounded(x, torch.Generator().manual_seed(1)).float(), x)


@pytest.fixture(scope="module")
def ends() -> dict[str, np.ndarray]:
    """The final loss of each variant by seed."""
    found = {}
    for name, variant in CARD.variants.items():
        work = DRIFT.with_(dtype="fp32" if name == "drift_fp32" else "bf16")
        runs = [reference.run(work, Topology(), seed, CARD.contract.budget, **variant) for seed in range(SEEDS)]
        found[name] = np.array([result(run) for run in runs])
    return found


def test_with_masters_and_with_stochastic_rounding_training_ends_where_float32_does(ends) -> None:
    lost = ends["drift_bf16"] - ends["drift_fp32"]
    for name in ("drift_masters", "drift_stochastic"):
        assert np.abs(ends[name] - ends["drift_fp32"]).max() < lost.min() / 20


def test_without_masters_training_ends_above_float32_with_every_seed(ends) -> None:
    spread = ends["drift_fp32"].std(ddof=1)
    assert (ends["drift_bf16"] - ends["drift_fp32"]).min() > 2 * spread


def test_the_claim_is_judged_by_the_curves(ends) -> None:
    records = [
        {"variant": name, "engine": "reference", "quantity": "score", "detail": {"results": list(found)}}
        for name, found in ends.items()
    ]
    assert claims.paper_masters(records).detail["status"] == "reproduced"
    other = {"drift_bf16": "drift_masters", "drift_masters": "drift_bf16"}
    swapped = [each | {"variant": other.get(each["variant"], each["variant"])} for each in records]
    assert claims.paper_masters(swapped).detail["status"] == "contradicted"
    assert claims.paper_masters(records[1:]).detail["status"] == "out of reach here"
