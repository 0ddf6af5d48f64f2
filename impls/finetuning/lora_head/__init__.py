"""Low-rank adapters at the two ends of a model: its embedding and its output head, which may share one matrix."""

from harness.spec import Card, Engine, Law, Trainers
from impls.finetuning.lora_head.grid import GRID

HERE = "impls.finetuning.lora_head"
PAPER = "Hu et al. 2021, LoRA, arXiv:2106.09685"
SHAPE = {"rank": 4, "alpha": 8}

CARD = Card(
    name="lora_head",
    title="LoRA of embedding and output head",
    sources=(
        f"{PAPER}, §4.1, equation 3; §4.2 leaves the other matrices to future work",
        "Press and Wolf 2017, Using the Output Embedding to Improve Language Models, arXiv:1608.05859: tied weights",
    ),
    variants={
        "lora_embedding": {**SHAPE, "ends": ("embedding",)},
        "lora_head": {**SHAPE, "ends": ("head",)},
        "lora_ends": {**SHAPE, "ends": ("embedding", "head")},
        # One adapter of the one matrix that both ends have.
        "lora_tied": {**SHAPE, "ends": ("tied",)},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "peft": Engine(f"{HERE}.on_peft:build", requires=("peft>=0.19", "transformers>=5")),
    },
    topologies=("dp1", "dp2"),
    contract=Trainers(plain=f"{HERE}.plain", flops=f"{HERE}.laws:added_flops"),
    grid=GRID,
    laws=(
        Law("memory", "states", f"{HERE}.laws:states", 0.05, f"{PAPER}, §4.2: no states for the frozen weights"),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "one all-reduce of the adapters' gradients"),
        Law(
            "flops",
            "step",
            f"{HERE}.laws:flops",
            0.0,
            "no backward pass below the lowest adapter: with the head's alone the layers have none",
            unit="FLOP",
        ),
    ),
)
