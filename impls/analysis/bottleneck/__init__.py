"""Model FLOPs accounting: what a training step computes, by each published formula and each counter of an engine."""

from harness.spec import Card, Claim, Engine, Functions
from impls.analysis.bottleneck.grid import GRID

HERE = "impls.analysis.bottleneck"
KAPLAN = "Kaplan et al. 2020, Scaling Laws for Neural Language Models, arXiv:2001.08361"
PALM = "Chowdhery et al. 2022, PaLM, arXiv:2204.02311"
MEGATRON = "Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters, arXiv:2104.04473"
SELECTIVE = "Korthikanti et al. 2022, Reducing Activation Recomputation, arXiv:2205.05198"

CARD = Card(
    name="bottleneck",
    title="Model FLOPs accounting",
    sources=(
        f"{PALM}, appendix B: 6N + 12LHQT a token",
        f"{MEGATRON}, appendix: 96Bslh²(1 + s/6h + V/16lh), with recomputation",
        f"{SELECTIVE}, appendix A: model and hardware FLOPs",
        f"{KAPLAN}, section 2.1: 6N a token",
    ),
    variants={
        "flops_whole": {"count": "whole", "parts": True},
        "flops_causal": {"count": "causal", "parts": True},
        "flops_flash": {"count": "flash", "parts": True},
        "flops_selective": {"count": "selective", "parts": True},
        "flops_recomputed": {"count": "recomputed", "parts": True},
        "flops_grouped": {"count": "grouped", "parts": True},
        "flops_total": {"count": "whole", "parts": False},  # of engines that tell no parts
        "flops_total_causal": {"count": "causal", "parts": False},
        "flops_six_n": {"count": "six_n", "parts": False},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(
            f"{HERE}.on_torch:build",
            variants=("flops_whole", "flops_flash", "flops_selective", "flops_recomputed", "flops_grouped"),
        ),
        "torch_profiler": Engine(f"{HERE}.on_torch_profiler:build", variants=("flops_whole", "flops_flash")),
        "deepspeed": Engine(
            f"{HERE}.on_deepspeed:build", requires=("deepspeed>=0.16",), variants=("flops_whole", "flops_grouped")
        ),
        "transformers": Engine(
            f"{HERE}.on_transformers:build", requires=("transformers>=5",), variants=("flops_six_n",)
        ),
        "trl": Engine(f"{HERE}.on_trl:build", requires=("trl>=1.16", "transformers>=5"), variants=("flops_total",)),
        "verl": Engine(
            f"{HERE}.on_verl:build", requires=("verl>=0.9", "transformers>=5"), variants=("flops_total_causal",)
        ),
        "megatron": Engine(
            unavailable="num_floating_point_operations is in megatron.training, which the megatron-core wheel "
            "(0.16.1) does not have; the claim megatron_causal compares its transcribed formula"
        ),
    },
    topologies=("dp1",),
    contract=Functions(f"{HERE}.problem", weighed=False),  # some count shapes, some what they see run
    grid=GRID,
    claims=(
        Claim(
            "palm_mfu", "PaLM 540B: MFU 46.2 %, 45.7 % without attention", f"{PALM}, table 3", f"{HERE}.claims:palm_mfu"
        ),
        Claim("palm_hfu", "PaLM 540B: HFU 57.8 %", f"{PALM}, section 4.1", f"{HERE}.claims:palm_hfu"),
        Claim("mt_nlg_mfu", "MT-NLG 530B: MFU 30.2 %", f"{PALM}, table 3 and appendix B", f"{HERE}.claims:mt_nlg_mfu"),
        Claim(
            "megatron_table",
            "a model of 1 T parameters: 163 TFLOP/s a GPU, 52 % of an A100's peak",
            f"{MEGATRON}, table 1",
            f"{HERE}.claims:megatron_table",
        ),
        Claim(
            "selective_mfu",
            "MFU 41.5, 51.4, 56.0 and 56.3 % of 22B, 175B, 530B and 1T",
            f"{SELECTIVE}, table 5",
            f"{HERE}.claims:selective_mfu",
        ),
        Claim(
            "selective_hfu",
            "HFU 43.7, 52.8, 57.0 and 57.0 % of the same runs, which compute attention twice",
            f"{SELECTIVE}, table 5 and appendix A",
            f"{HERE}.claims:selective_hfu",
        ),
        Claim(
            "gpt3_total",
            "GPT-3 175B took 3.14e23 FLOPs",
            "Brown et al. 2020, arXiv:2005.14165, table D.1",
            f"{HERE}.claims:gpt3_total",
        ),
        Claim(
            "llama3_total",
            "Llama 3 405B took 3.8e25 FLOPs",
            "Grattafiori et al. 2024, arXiv:2407.21783, section 1",
            f"{HERE}.claims:llama3_total",
        ),
        Claim(
            "deepseek_active",
            "DeepSeek-V3: 671B parameters, 37B activated for each token",
            "DeepSeek-AI 2024, arXiv:2412.19437, abstract",
            f"{HERE}.claims:deepseek_active",
        ),
        Claim(
            "six_per_parameter", "6 FLOPs a parameter and token", f"{KAPLAN}, 2.1", f"{HERE}.claims:six_per_parameter"
        ),
        Claim(
            "megatron_causal",
            "Megatron-LM's formula of today counts half of attention's pairs, and the experts that a token is sent to",
            "Megatron-LM 2026, megatron/training/training.py, num_floating_point_operations",
            f"{HERE}.claims:megatron_causal",
        ),
    ),
)
