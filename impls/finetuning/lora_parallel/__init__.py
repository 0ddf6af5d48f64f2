"""Low-rank adapters of matrices that tensor parallelism cuts across ranks."""

from harness.spec import Card, Engine, Functions, Grid, Law, Row

HERE = "impls.finetuning.lora_parallel"
SHAPE = {"rank": 4, "alpha": 8}

CARD = Card(
    name="lora_parallel",
    title="LoRA under tensor parallelism",
    sources=(
        "Hu et al. 2021, LoRA, arXiv:2106.09685, §4.1 equation 3",
        "Shoeybi et al. 2019, Megatron-LM, §3, figure 3: f and g",
    ),
    variants={
        # Ranks sum the gradients of the uncut factors, once a step.
        "lora_tp": {**SHAPE, "low": False},
        # Ranks sum the low-rank activations and their gradients, for each token.
        "lora_tp_low": {**SHAPE, "low": True},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "peft_transformers": Engine(
            f"{HERE}.on_peft_transformers:build",
            requires=("peft>=0.21", "transformers>=5.17"),
            variants=("lora_tp_low",),
        ),
    },
    topologies=("dp1", "tp2"),
    contract=Functions(f"{HERE}.problem", telling=("rank", "alpha"), weighed=False),
    grid=Grid((Row("tiny", "fp32", True), Row("tiny", "bf16", ("tp2",), ("lora_tp",))), timed=()),
    laws=(
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "f and g of the block, and the sums of the adapters' own"),
    ),
)
