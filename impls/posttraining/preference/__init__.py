"""Learning from pairs of completions, one preferred over the other, without a reward model."""

from harness.spec import Card, Engine, Functions

_HERE = "impls.posttraining.preference"

CARD = Card(
    name="preference",
    title="Direct preference optimization",
    sources=("Rafailov et al. 2023, Direct Preference Optimization, arXiv:2305.18290, equation 7",),
    variants={"dpo": {"beta": 0.1}},
    engines={
        "reference": Engine(f"{_HERE}.reference:build"),
        "trl": Engine(f"{_HERE}.on_trl:build", requires=("trl>=1.16", "transformers>=5", "datasets>=3")),
    },
    topologies=("dp1",),
    contract=Functions(f"{_HERE}.problem"),
)
