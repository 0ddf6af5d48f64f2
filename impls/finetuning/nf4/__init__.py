"""Storage of frozen weights in four bits: NF4, FP4 and double quantisation; and in eight."""

from harness.spec import Card, Claim, Engine, Functions, Grid, ModelConfig, Row
from harness.spec.named import NAMED

HERE = "impls.finetuning.nf4"
PAPER = "Dettmers et al. 2023, QLoRA, arXiv:2305.14314"
# Three blocks of 256 scales, or three and a part of one.
SCALES = NAMED["tiny"].with_(name="scales", model=ModelConfig(hidden_size=128, intermediate_size=384))

CARD = Card(
    name="nf4",
    title="Four bits a weight: NF4, FP4, double quantisation",
    sources=(
        f"{PAPER}, §2 equations 1 and 2, §3 equation 4, appendix E",
        "Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339, §2.1",
    ),
    variants={
        "nf4_single": {"normal": True, "double": False},
        "nf4_double": {"normal": True, "double": True},
        "fp4_single": {"normal": False, "double": False},
        "fp4_double": {"normal": False, "double": True},
        # Whole blocks of weights and of scales.
        "nf4_even": {"normal": True, "double": True, "even": True},
        # Whole numbers of eight bits, and a scale each row.
        "int8_rows": {"int8": True},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "bitsandbytes": Engine(f"{HERE}.on_bitsandbytes:build", requires=("bitsandbytes>=0.50",)),
        "torchao": Engine(f"{HERE}.on_torchao:build", requires=("torchao>=0.16",), variants=("nf4_even",)),
    },
    topologies=("dp1",),
    contract=Functions(f"{HERE}.problem", exact=("codes", "scales", "bits"), weighed=False),
    grid=Grid((Row(SCALES, "fp32", True), Row(SCALES, "bf16", True)), timed=()),
    claims=(
        Claim(
            "qlora_bits",
            "Double quantisation takes 4.5 bits a parameter to 4.127, which saves 0.37",
            f"{PAPER}, §3",
            f"{HERE}.claims:bits",
        ),
        Claim(
            "nf4_error",
            "NF4 is closer to normally distributed weights than FP4",
            f"{PAPER}, §4 and table 2",
            f"{HERE}.claims:error",
        ),
    ),
)
