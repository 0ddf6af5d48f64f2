"""Where low-rank adapters start: PiSSA and OLoRA take a part of the frozen matrix, LoftQ what its rounding lost."""

from harness.spec import Card, Claim, Engine, Functions, Grid, Row

HERE = "impls.finetuning.lora_init"
PAPER = "Li et al. 2023, LoftQ, arXiv:2310.08659"
SHAPE = {"rank": 4, "alpha": 8}
LOFTQ = {"rank": 4, "alpha": 4, "start": "loftq"}
PARTS = ("pissa", "olora")
ROUNDED = ("loftq", "loftq_5", "loftq_scaled")

CARD = Card(
    name="lora_init",
    title="Initial adapters: PiSSA, OLoRA and LoftQ",
    sources=(
        "Meng et al. 2024, PiSSA, arXiv:2404.02948, §3, equations 2 to 4",
        "Büyükakyüz 2024, OLoRA, arXiv:2406.01775, §3, algorithm 1",
        f"{PAPER}, §3, equations 6 to 9, algorithm 1",
    ),
    variants={
        "pissa": {**SHAPE, "start": "pissa"},
        "olora": {**SHAPE, "start": "olora"},
        "loftq": LOFTQ,
        "loftq_5": {**LOFTQ, "steps": 5},
        # s = α/r is 2, where the paper has no s.
        "loftq_scaled": {**LOFTQ, "alpha": 8},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "peft": Engine(f"{HERE}.on_peft:build", requires=("peft>=0.17",), variants=PARTS),
        "peft_loftq": Engine(
            f"{HERE}.on_peft_loftq:build", requires=("peft>=0.17", "bitsandbytes>=0.50"), variants=ROUNDED
        ),
    },
    topologies=("dp1",),
    contract=Functions(f"{HERE}.problem", weighed=False),
    grid=Grid((Row("tiny", "fp32", True), Row("tiny", "bf16", True, PARTS)), timed=()),
    claims=(
        Claim(
            "loftq_error",
            "The error of the rounded matrix and its adapter falls with alternating steps",
            f"{PAPER}, §3.3 and §4.4",
            f"{HERE}.claims:falls",
        ),
    ),
)
