"""Low-rank adapters of a frozen model: LoRA, rsLoRA, LoRA+ and DoRA."""

from harness.spec import Card, Claim, Engine, Law, Trainers
from impls.finetuning.lora.grid import GRID

HERE = "impls.finetuning.lora"
PAPER = "Hu et al. 2021, LoRA, arXiv:2106.09685"
SHAPE = {"rank": 4, "alpha": 8}
SHARDED = ("lora", "dora")  # whose frozen weights are divided over the ranks too

CARD = Card(
    name="lora",
    title="LoRA, rsLoRA, LoRA+ and DoRA",
    sources=(
        f"{PAPER}, §4.1, equation 3",
        "Kalajdzievski 2023, rsLoRA, arXiv:2312.03732, theorem 3.2: α/√r",
        "Hayou et al. 2024, LoRA+, arXiv:2402.12354, §1: the step of B is λ times that of A",
        "Liu et al. 2024, DoRA, arXiv:2402.09353, §4.1 equation 5, §4.3 equation 11",
    ),
    variants={
        "lora": SHAPE,
        "rslora": {**SHAPE, "rslora": True},
        "lora_plus": {**SHAPE, "ratio": 16.0},
        "dora": {**SHAPE, "dora": True},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "peft": Engine(f"{HERE}.on_peft:build", requires=("peft>=0.17",)),
        "peft_fsdp2": Engine(f"{HERE}.on_peft_fsdp2:build", requires=("peft>=0.17",), variants=SHARDED),
        "peft_deepspeed": Engine(
            f"{HERE}.on_peft_deepspeed:build", requires=("peft>=0.17", "deepspeed>=0.16"), variants=SHARDED
        ),
    },
    topologies=("dp1", "dp2"),
    contract=Trainers(plain=f"{HERE}.plain", replays=f"{HERE}.plain:replays", flops=f"{HERE}.laws:added_flops"),
    grid=GRID,
    laws=(
        Law("memory", "states", f"{HERE}.laws:states", 0.05, f"{PAPER}, §4.2: no states for the frozen weights"),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "one all-reduce of the adapters' gradients"),
        Law(
            "flops",
            "step",
            f"{HERE}.laws:flops",
            0.0,
            "4 a token and frozen weight, which has no gradient",
            unit="FLOP",
        ),
    ),
    claims=(
        Claim(
            "lora_share",
            "Fewer than 1 % of the parameters are trained",
            f"{PAPER}, §4.2; the course's figure",
            f"{HERE}.claims:share",
        ),
        Claim(
            "lora_gpt3",
            "GPT-3 175B: 10,000 times fewer trained parameters, a third of the memory",
            f"{PAPER}, abstract and §4.2",
            f"{HERE}.claims:gpt3",
        ),
    ),
)
