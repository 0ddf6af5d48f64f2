"""Several low-rank adapters of one matrix: both at once, their weighted sum, and merged."""

from harness.spec import Card, Engine, Functions, Grid, Row

HERE = "impls.finetuning.lora_sum"
SHAPE = {"rank": 4, "alphas": (8, 6), "weights": (0.7, -0.4)}

CARD = Card(
    name="lora_sum",
    title="Several adapters at once and their weighted sum",
    sources=(
        "Hu et al. 2021, LoRA, arXiv:2106.09685, §4.1: tasks are switched by subtracting B A and adding B' A'",
        "Huang et al. 2023, LoraHub, arXiv:2307.13269, §3.3: a sum of factors, in place of a sum of products",
    ),
    variants={
        # One adapter of rank 2r, whose factors are the stacked ones.
        "sum_cat": {**SHAPE, "kind": "cat"},
        # The sum's singular value decomposition, of rank 2r.
        "sum_svd": {**SHAPE, "kind": "svd"},
        # An engine's adapter of rank r from sums of the factors; the textbook has the weighted sum here too.
        "sum_linear": {**SHAPE, "kind": "linear"},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "peft": Engine(f"{HERE}.on_peft:build", requires=("peft>=0.17",)),
    },
    topologies=("dp1",),
    contract=Functions(f"{HERE}.problem", weighed=False),
    grid=Grid((Row("tiny", "fp32", True), Row("tiny", "bf16", True)), timed=()),
)
