"""Adapters of a base that is stored in four bits, whole or divided over ranks: QLoRA and FSDP-QLoRA."""

from harness.spec import Card, Claim, Engine, Law, Trainers
from impls.finetuning.qlora.grid import GRID, SHARDED, WHOLE

HERE = "impls.finetuning.qlora"
PAPER = "Dettmers et al. 2023, QLoRA, arXiv:2305.14314"
SHAPE = {"rank": 4, "alpha": 8, "normal": True, "double": True}
SINGLE = {**SHAPE, "double": False}
NEEDS = ("peft>=0.17", "bitsandbytes>=0.50")

CARD = Card(
    name="qlora",
    title="QLoRA: adapters of a four-bit base",
    sources=(
        f"{PAPER}, §3, equations 5 and 6",
        "Answer.AI 2024, You can now train a 70b language model at home: FSDP and QLoRA",
    ),
    variants={
        "qlora": SHAPE,
        "qlora_single": SINGLE,
        "qlora_fp4": {**SINGLE, "normal": False},
        # Codes and scales are divided over the ranks.
        "qlora_sharded": {**SHAPE, "sharded": True},
        "qlora_sharded_single": {**SINGLE, "sharded": True},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "peft": Engine(f"{HERE}.on_peft:build", requires=NEEDS, variants=WHOLE),
        # The same with the paper's optimizer, whose pages only CUDA moves: on a CPU it is the plain one.
        "peft_paged": Engine(f"{HERE}.on_peft:build_paged", requires=(*NEEDS, "cuda"), variants=("qlora",)),
        # The same with an evaluation after each step, as trainers do.
        "peft_evaluated": Engine(f"{HERE}.on_peft:build_evaluated", requires=NEEDS, variants=("qlora_single",)),
        # The same on matrices whose rows are not whole blocks.
        "peft_narrow": Engine(f"{HERE}.on_peft:build_narrow", requires=NEEDS, variants=("qlora_single",)),
        "peft_fsdp2": Engine(f"{HERE}.on_peft:build_fsdp2", requires=NEEDS, variants=SHARDED),
    },
    topologies=("dp1", "dp2", "dp4"),
    contract=Trainers(plain=f"{HERE}.plain", flops="impls.finetuning.lora.laws:added_flops"),
    grid=GRID,
    laws=(
        Law(
            "memory",
            "states",
            f"{HERE}.laws:states",
            0.01,
            f"{PAPER}, §3: 4.127 bits a frozen weight, 1/N of them if the storage is divided",
            direction="at_most",
        ),
        Law(
            "memory",
            "activations",
            f"{HERE}.laws:activations",
            0.01,
            f"{PAPER}, §3: weights are dequantised again in the backward pass",
            direction="at_most",
        ),
        Law(
            "traffic",
            "bytes",
            f"{HERE}.laws:traffic",
            0.0,
            "one all-reduce of the adapters' gradients; a divided base travels in four bits, twice a micro-batch",
        ),
    ),
    claims=(
        Claim(
            "qlora_65b",
            "A 65 B model is fine-tuned on one card of 48 GB",
            f"{PAPER}, abstract",
            f"{HERE}.claims:llama",
        ),
        Claim(
            "qlora_measured_bits",
            "Double quantisation saves 0.37 bits a parameter",
            f"{PAPER}, §3",
            f"{HERE}.claims:bits",
        ),
    ),
)
