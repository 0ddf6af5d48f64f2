"""Tensor parallelism: the matrices of every layer are cut across ranks."""

from harness.spec import Card, Claim, Engine, Law
from impls.parallelism.tensor_parallel.grid import GRID

HERE = "impls.parallelism.tensor_parallel"
COURSE = "AIInfra course, tensor parallelism practice"
MEGATRON = "Shoeybi et al. 2019, Megatron-LM"

CARD = Card(
    name="tensor_parallel",
    title="Tensor parallelism",
    sources=(
        f"{MEGATRON}, §3, figure 3",
        "Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters, §2.3, §3.2",
    ),
    # Around the model, users put validation passes, whose losses are reported, and heads of their own.
    variants={"tp": {}, "tp_validated": {"validated": True}, "tp_own_head": {"own_head": True}},
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(f"{HERE}.on_torch:build", variants=("tp",)),
        "megatron": Engine(f"{HERE}.on_megatron:build", requires=("megatron-core>=0.16",)),
        "deepspeed": Engine(f"{HERE}.on_deepspeed:build", requires=("deepspeed>=0.19",), variants=("tp",)),
        "deepspeed_saved": Engine(f"{HERE}.on_deepspeed:build_saved", requires=("deepspeed>=0.19",), variants=("tp",)),
        "colossalai": Engine(
            f"{HERE}.on_colossalai:build",
            requires=("colossalai>=0.5",),
            variants=("tp",),
            environment="colossalai-suites",
        ),
    },
    topologies=("dp1", "tp2", "tp4"),
    grid=GRID,
    laws=(
        Law(
            "memory",
            "states",
            f"{HERE}.laws:states",
            0.05,
            f"{MEGATRON}, §3: matrices ÷ t, norms replicated",
            direction="at_most",
        ),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, f"{MEGATRON}, §3: 2 + 2 all-reduces of b·s·h a layer"),
    ),
    claims=(
        Claim(
            "practice_memory",
            "about 12 GB → about 7 GB at TP 2 (41.7 %); 12 layers, h 768, 30,000 words",
            COURSE,
            f"{HERE}.claims:practice_memory",
        ),
        Claim("practice_loss", "loss 10.31 → 1.58 in 900 steps, 30,000 words", COURSE, f"{HERE}.claims:practice_loss"),
        Claim(
            "paper_512_gpus",
            "76 % of linear scaling on 512 GPUs, 8-way tensor parallelism",
            f"{MEGATRON}, abstract",
            f"{HERE}.claims:paper_512_gpus",
        ),
    ),
)
