"""Workloads: invalid ones, and ones that do not fit a topology."""

from math import inf, nan

import pytest

from harness.spec import ModelConfig, Topology, Workload

TWICE = Workload(applied_twice=True)
SKIPPING = Workload(model=ModelConfig(stochastic_depth=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "fp8"}, "dtype 'fp8' is unknown; known: "),
        ({"optimizer": "lion"}, "optimizer 'lion' is unknown; known: "),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"steps": -1}, "steps must be at least 1, not -1"),
        ({"lr": -1.0}, "lr must be positive and finite, not -1.0"),
        ({"lr": 0.0}, "lr must be positive and finite, not 0.0"),
        ({"lr": nan}, "lr must be positive and finite, not nan"),
        ({"lr": inf}, "lr must be positive and finite, not inf"),
        ({"eps": 0.0}, "eps must be positive and finite, not 0.0"),
        ({"weight_decay": -0.5}, "weight_decay must be 0 or more and finite, not -0.5"),
        ({"weight_decay": nan}, "weight_decay must be 0 or more and finite, not nan"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be 0 or more and finite, not -1.0"),
        ({"max_grad_norm": inf}, "max_grad_norm must be 0 or more and finite, not inf"),
        ({"betas": (0.9, 1.0)}, r"betas must be from 0 to below 1, not \[0.9, 1.0\]"),
        ({"betas": (-0.1, 0.9)}, "betas must be from 0 to below 1"),
        ({"betas": (nan, 0.9)}, "betas must be from 0 to below 1"),
        ({"seed": -3}, "seed must be 0 or more, not -3"),
    ],
)
def test_an_invalid_workload_is_rejected_with_the_reason(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Workload().with_(**change)


@pytest.mark.parametrize("size", [0, -1, nan, inf])
@pytest.mark.parametrize("name", ["hidden_size", "rms_norm_eps", "rope_theta"])
def test_a_models_numbers_are_positive_and_finite(name: str, size: float) -> None:
    with pytest.raises(ValueError, match=f"model.{name} must be positive and finite, not {size}"):
        ModelConfig(**{name: size})


@pytest.mark.parametrize(
    ("work", "topology", "reason"),
    [
        (Workload(batch_size=6), Topology(dp=4), "batch_size 6 is not a multiple of dp × micro_batches = 4"),
        (Workload(micro_batches=8), Topology(dp=2), "batch_size 8 is not a multiple of dp × micro_batches = 16"),
        (Workload(), Topology(tp=3), "tp 3 does not divide model.num_attention_heads"),
        (Workload(), Topology(pp=3), "pp 3 does not divide model.num_hidden_layers 2"),
        (Workload(), Topology(cp=5), "cp 5 does not divide sequence_length 32"),
        (Workload(), Topology(dp=2, tp=2, pp=2, cp=2), ""),
        (SKIPPING, Topology(dp=2), ""),
        (TWICE, Topology(dp=4), ""),
        (TWICE, Topology(dp=8), "applied_twice requires micro-batches of two sequences or more: batch_size 16 here"),
        *((TWICE, Topology(**{axis: 2}), "applied_twice requires data parallelism") for axis in ("tp", "pp", "cp")),
        *(
            (SKIPPING, Topology(**{axis: 2}), "stochastic_depth requires data parallelism")
            for axis in ("tp", "pp", "cp")
        ),
    ],
)
def test_work_that_does_not_fit_a_topology_says_what_to_change(work: Workload, topology: Topology, reason: str) -> None:
    found = work.check(topology)
    assert reason in found
    assert bool(found) == bool(reason)


def test_tied_embeddings_are_counted_once() -> None:
    model = ModelConfig()
    tied = ModelConfig(tie_word_embeddings=True)
    assert model.parameters - tied.parameters == model.vocab_size * model.hidden_size
