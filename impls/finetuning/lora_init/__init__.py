"""Where low-rank adapters start: PiSSA and OLoRA take a part of the frozen matrix."""

from harness.spec import Card, Engine, Functions

HERE = "impls.finetuning.lora_init"

CARD = Card(
    name="lora_init",
    title="Initial adapters: PiSSA and OLoRA",
    sources=(
        "Meng et al. 2024, PiSSA, arXiv:2404.02948, §3, equations 2 to 4",
        "Büyükakyüz 2024, OLoRA, arXiv:2406.01775, §3, algorithm 1",
    ),
    variants={
        "pissa": {"rank": 4, "alpha": 8, "principal": True},
        "olora": {"rank": 4, "alpha": 8, "principal": False},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "peft": Engine(f"{HERE}.on_peft:build", requires=("peft>=0.17",)),
    },
    topologies=("dp1",),
    contract=Functions(f"{HERE}.problem", weighed=False),
)
