"""Expert parallelism: a mixture-of-experts layer with its experts distributed over the data-parallel ranks."""

from harness.spec import Card, Claim, Engine, Functions, Law
from impls.parallelism.expert_parallel.grid import GRID

HERE = "impls.parallelism.expert_parallel"
SWITCH = "Fedus et al. 2022, Switch Transformers, arXiv:2101.03961"
GSHARD = "Lepikhin et al. 2020, GShard, arXiv:2006.16668"
COURSE = "AIInfra course, practice on mixture of experts"
DEEPSEEK = "DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437"

CARD = Card(
    name="expert_parallel",
    title="Expert parallelism",
    sources=(
        f"{GSHARD}, section 2.2, algorithm 1",
        f"{SWITCH}, section 2.2, equations 1–6",
        "Riquelme et al. 2021, V-MoE, arXiv:2106.05974, section 4: batch prioritized routing",
        "Zoph et al. 2022, ST-MoE, arXiv:2202.08906, equation 5",
        "Jiang et al. 2024, Mixtral, arXiv:2401.04088, section 2.1",
        f"{DEEPSEEK}, section 2.1.2, equations 12–16; Wang et al. 2024, arXiv:2408.15664, algorithm 1",
    ),
    variants={
        "switch": {"experts": 8, "k": 1, "capacity": 1.0, "groups": 4, "auxiliary": 1e-2},
        "switch_priority": {
            "experts": 8,
            "k": 1,
            "capacity": 1.0,
            "groups": 4,
            "drop": "priority",
            "auxiliary": 1e-2,
        },
        "gshard": {"experts": 8, "k": 2, "capacity": 1.0, "groups": 4, "auxiliary": 1e-2},
        "gshard_roomy": {"experts": 8, "k": 2, "capacity": 4.0, "groups": 4, "auxiliary": 1e-2},
        "st_moe": {"experts": 8, "k": 2, "auxiliary": 1e-2, "z": 1e-3},
        "loss_free": {"experts": 8, "k": 2, "bias": True},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "megatron_alltoall": Engine(f"{HERE}.on_megatron:build_alltoall", requires=("megatron-core>=0.16",)),
        "megatron_allgather": Engine(
            f"{HERE}.on_megatron:build_allgather",
            requires=("megatron-core>=0.16",),
            variants=("switch_priority", "st_moe", "loss_free"),
        ),
        "deepspeed": Engine(f"{HERE}.on_deepspeed:build", requires=("deepspeed>=0.19",)),
        "transformers": Engine(
            f"{HERE}.on_transformers:build", requires=("transformers>=5",), variants=("st_moe", "loss_free")
        ),
        "transformers_grouped": Engine(
            f"{HERE}.on_transformers:build_grouped", requires=("transformers>=5",), variants=("st_moe",)
        ),
    },
    topologies=("dp1", "dp2ep2", "dp4ep2", "dp2tp2ep2"),
    contract=Functions(f"{HERE}.problem"),
    grid=GRID,
    laws=(
        Law(
            "memory",
            "saved",
            f"{HERE}.laws:saved",
            0.05,
            "activations of the rows that a rank's experts receive",
            direction="at_most",
        ),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, f"{GSHARD}, section 3.2: k rows of h per token, each way"),
    ),
    claims=(
        Claim(
            "practice_parameters",
            "6,973 parameters (10 inputs, 5 outputs, 4 experts, hidden 64)",
            COURSE,
            f"{HERE}.claims:practice_parameters",
        ),
        Claim(
            "practice_entropy",
            "entropy of the experts' load 2.0672, at most 2.0794",
            COURSE,
            f"{HERE}.claims:practice_entropy",
        ),
    ),
)
