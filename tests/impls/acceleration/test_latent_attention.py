"""Latent attention: both forms on odd sizes, the size of the cache, its claim and its rotary key."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, Topology, Workload
from impls.acceleration.latent_attention import CARD, claims
from impls.acceleration.latent_attention.problem import draw, plain, rotated
from impls.acceleration.latent_attention.reference import build
from impls.acceleration.latent_attention.sizes import sizes

WORK = Workload("odd", ModelConfig(hidden_size=22, head_dim=6), batch_size=3, sequence_length=5, dtype="fp64")


@pytest.mark.parametrize("topology", ["dp1", "tp2", "tp4"])
@pytest.mark.parametrize("variant", CARD.variants)
def test_both_forms_are_the_formula_in_float64_on_odd_sizes(lab: Lab, variant: str, topology: str) -> None:
    case = Case(CARD.name, variant, "reference", Topology.parse(topology), WORK)
    found = [*lab.measure("parity", case), *(lab.measure("traffic", case) if topology != "dp1" else [])]
    assert [measurement.reason for measurement in found if measurement.verdict != "pass"] == []
    assert {measurement.quantity for measurement in found} >= {"output", "gradient"}


@settings(derandomize=True, max_examples=40)
@given(
    absorbed=st.booleans(),
    hidden=st.integers(8, 40),
    heads=st.integers(1, 5),
    width=st.integers(2, 6).map(lambda half: 2 * half),
    batch=st.integers(1, 3),
    sequence=st.integers(1, 9),
    seed=st.integers(0, 10**6),
)
def test_any_sizes_compute_what_the_formula_does(
    absorbed: bool, hidden: int, heads: int, width: int, batch: int, sequence: int, seed: int
) -> None:
    model = ModelConfig(hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=heads, head_dim=width)
    work = Workload("drawn", model, batch_size=batch, sequence_length=sequence, dtype="fp64", seed=seed)
    inputs = draw(work, absorbed)
    ours, formula = (f(inputs)["output"] for f in (build(work, Topology(), absorbed), lambda x: plain(x, absorbed)))
    torch.testing.assert_close(ours, formula, rtol=0, atol=1e-11)


def test_scores_depend_on_the_distance_of_two_positions_alone() -> None:
    query, key = torch.randn(2, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = [rotated(x.expand(1, 1, 6, 8), 100.0)[0, 0] for x in (query, key)]
    scores = turned[0] @ turned[1].T
    for distance in range(-5, 6):
        band = scores.diagonal(distance)
        torch.testing.assert_close(band, band[:1].expand_as(band), rtol=0, atol=1e-6)
    assert scores.std() > 0.1


def test_data_parallel_ranks_are_skipped_with_the_reason(lab: Lab) -> None:
    work = WORK.with_(name="four", batch_size=4)
    (found,) = lab.measure("parity", Case(CARD.name, "mla", "reference", Topology(dp=2), work))
    assert (found.verdict, "is divided along tp only, not over dp2" in found.reason) == ("skipped", True)


def test_the_published_saving_counts_the_caches_quantisation() -> None:
    found = claims.cache([])
    assert found.detail["status"] == "reproduced"
    assert found.value == pytest.approx(0.9334, abs=1e-4)
    assert "82.2%" in found.reason


def test_ranks_are_even_where_megatron_and_rotation_halve_them() -> None:
    for hidden in range(8, 30):
        _, query_rank, latent, plain_width, rotary = sizes(ModelConfig(hidden_size=hidden, head_dim=2 * hidden))
        assert {query_rank % 2, latent % 2, rotary % 2} == {0}
        assert plain_width == 2 * hidden
