"""Low-rank adapters of a text-to-image model's UNet."""

from harness.spec import Card, Claim, Engine, Law, Trainers
from impls.finetuning.diffusion_lora.grid import GRID

HERE = "impls.finetuning.diffusion_lora"
SHAPE = {"rank": 4, "alpha": 8}
DIFFUSERS = ("diffusers>=0.35", "peft>=0.17")

CARD = Card(
    name="diffusion_lora",
    title="LoRA of a Stable Diffusion UNet",
    sources=(
        "Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models, arXiv:2112.10752, §3.3",
        "Ho et al. 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239, equations 4 and 14, appendix B",
        "Salimans & Ho 2022, Progressive Distillation, arXiv:2202.00512, §4 and appendix D: v-prediction",
        "Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting Strategy, arXiv:2303.09556, §3.4",
        "Hu et al. 2021, LoRA, arXiv:2106.09685, §4.1, equation 3",
    ),
    variants={
        "diffusion_lora_epsilon": {**SHAPE, "prediction": "epsilon"},
        "diffusion_lora_v": {**SHAPE, "prediction": "v"},
        "diffusion_lora_min_snr": {**SHAPE, "prediction": "epsilon", "gamma": 5.0},
        "diffusion_lora_v_min_snr": {**SHAPE, "prediction": "v", "gamma": 5.0},
        # The limit is so low that some of the first steps reach it.
        "diffusion_lora_ema": {**SHAPE, "prediction": "epsilon", "ema": 0.2},
        # Adapters with a weight of their own, as where there are several.
        "diffusion_lora_scaled": {**SHAPE, "prediction": "epsilon", "scale": 0.5},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "diffusers": Engine(f"{HERE}.on_diffusers:build", requires=DIFFUSERS),
        "diffusers_checkpointed": Engine(
            f"{HERE}.on_diffusers:build_checkpointed",
            requires=DIFFUSERS,
            variants=("diffusion_lora_epsilon", "diffusion_lora_scaled"),
        ),
        "diffusers_saved": Engine(
            f"{HERE}.on_diffusers:build_saved",
            requires=(*DIFFUSERS, "transformers>=4.57"),
            variants=("diffusion_lora_epsilon",),
        ),
    },
    topologies=("dp1", "dp2"),
    contract=Trainers(plain=f"{HERE}.plain", data=f"{HERE}.data", replays=f"{HERE}.plain:replays"),
    grid=GRID,
    laws=(
        Law("memory", "states", f"{HERE}.laws:states", 0.05, "Hu et al. 2021, §4.2: no states for the frozen weights"),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "one all-reduce of the adapters' gradients"),
    ),
    claims=(
        Claim(
            "diffusion_share",
            "0.84 M parameters at rank 16 on q, k and v of Stable Diffusion 1.5, 0.1 %",
            "The course's figure",
            f"{HERE}.claims:share",
        ),
    ),
)
