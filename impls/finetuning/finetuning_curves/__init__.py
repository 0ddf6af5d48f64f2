"""Learning curves of fine-tuning: whole runs on a small task, step by step beside those of the libraries."""

from harness.spec import Card, Claim, Engine, Flows
from impls.finetuning.finetuning_curves.grid import DIGITS, GRID, STEPS

HERE = "impls.finetuning.finetuning_curves"
NEW = {"rule": "complement"}  # a skill that the model does not have
LORA = {"rank": 4, "alpha": 8, **NEW}
ADAPTED = ("curve_lora", "curve_lora_sgd", "curve_qlora", "curve_ia3")

CARD = Card(
    name="finetuning_curves",
    title="Learning curves of fine-tuning",
    sources=(
        "Ouyang et al. 2022, InstructGPT, arXiv:2203.02155, §3.5",
        "Hu et al. 2021, LoRA, arXiv:2106.09685, §4.1",
        "Dettmers et al. 2023, QLoRA, arXiv:2305.14314, §3",
        "Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning (T-Few), arXiv:2205.05638, §3.3",
    ),
    variants={
        "curve_sft": {"method": "full", "lr": 3e-3, **NEW},
        "curve_lora": {"method": "lora", "lr": 1.5e-2, **LORA},
        "curve_lora_sgd": {"method": "lora", "lr": 0.2, **LORA},
        "curve_qlora": {"method": "qlora", "lr": 1.5e-2, "normal": True, "double": False, **LORA},
        # It has 256 parameters here, too few to teach what the model cannot do.
        "curve_ia3": {"method": "ia3", "lr": 6e-2, "rule": "successor"},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:run"),
        "transformers": Engine(
            f"{HERE}.on_transformers:run", requires=("transformers>=5", "accelerate>=1.2"), variants=("curve_sft",)
        ),
        "trl": Engine(
            f"{HERE}.on_trl:run",
            requires=("trl>=1.0", "transformers>=5", "accelerate>=1.2", "datasets>=3"),
            variants=("curve_sft",),
        ),
        "peft": Engine(
            f"{HERE}.on_peft:run",
            requires=("peft>=0.17", "transformers>=5", "accelerate>=1.2", "bitsandbytes>=0.50"),
            variants=ADAPTED,
        ),
    },
    topologies=("dp1",),
    contract=Flows("exact matches", seeds=5, budget=STEPS * DIGITS.batch_size),
    grid=GRID,
    claims=(
        Claim(
            "reaches_the_peer",
            "The references reach the libraries' scores at the same number of samples",
            "the libraries' own loops: TRL 2020, PEFT 2022, Transformers 2020",
            f"{HERE}.claims:reaches_the_peer",
        ),
    ),
)
