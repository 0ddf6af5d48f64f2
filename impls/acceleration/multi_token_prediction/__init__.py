"""Multi-token prediction: modules behind the model that predict further tokens, each from the one before."""

from harness.spec import Card, Engine, Trainers
from impls.acceleration.multi_token_prediction.grid import GRID

HERE = "impls.acceleration.multi_token_prediction"
DEEPSEEK = "DeepSeek-AI 2024, DeepSeek-V3 Technical Report, arXiv:2412.19437"
ONE = {"depth": 1, "weight": 0.3}  # λ of the first 10 T tokens (ibid., §4.2)

CARD = Card(
    name="multi_token_prediction",
    title="Multi-token prediction",
    sources=(f"{DEEPSEEK}, §2.2, equations 21 to 25",),
    # A depth's loss is the mean over its own tokens; with over_t it has the factor 1/T that equation 24 prints.
    variants={
        "mtp1": ONE,
        "mtp2": {**ONE, "depth": 2},
        "mtp3": {**ONE, "depth": 3},
        "mtp2_sp": {**ONE, "depth": 2, "sequence_parallel": True},
        "mtp2_over_t": {**ONE, "depth": 2, "over_t": True},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "megatron": Engine(f"{HERE}.on_megatron:build", requires=("megatron-core>=0.16",)),
        "megatron_per_token": Engine(f"{HERE}.on_megatron:build_per_token", requires=("megatron-core>=0.16",)),
        "transformers": Engine(f"{HERE}.on_transformers:build", requires=("transformers>=5.24",)),
    },
    topologies=("dp1", "dp2", "tp2", "cp2"),
    contract=Trainers(plain=f"{HERE}.plain", observes=True),
    grid=GRID,
)
