"""AdaLoRA: adapters as P Λ Q, whose ranks a budget takes away where they matter least."""

from harness.spec import Card, Engine, Grid, Row, Trainers
from harness.spec.named import NAMED

HERE = "impls.finetuning.adalora"
PAPER = "Zhang et al. 2023, AdaLoRA, arXiv:2303.10512"
# The budget falls from 6 ranks a matrix to 3 between steps 2 and 8 of 10, every second step.
SHAPE = {"rank": 6, "target": 3, "alpha": 12, "warmup": 2, "final": 2, "every": 2, "gamma": 0.5}
LONG = NAMED["thorough"].with_(name="allotted", steps=10)

CARD = Card(
    name="adalora",
    title="AdaLoRA: a budget of ranks",
    sources=(f"{PAPER}, §3.1 equations 3 to 5, §3.2 equations 6 to 11, §3.3 equation 12",),
    variants={
        "adalora": SHAPE,
        # The regulariser as PEFT has it: the mean of the norms of all P and Q, in place of the sum of their squares.
        "adalora_mean_norm": {**SHAPE, "squared": False},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "peft": Engine(f"{HERE}.on_peft:build", requires=("peft>=0.17",)),
        "peft_untyped": Engine(
            f"{HERE}.on_peft:build_untyped", requires=("peft>=0.17",), variants=("adalora_mean_norm",)
        ),
    },
    topologies=("dp1", "dp2"),
    contract=Trainers(plain=f"{HERE}.plain", observes=True, replays=False),
    # Rounding in bfloat16 may order two close scores the other way, which no noise floor describes.
    grid=Grid((Row(LONG, "fp32", True),), timed=()),
)
