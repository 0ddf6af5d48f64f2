"""Context parallelism: the sequence of one attention on several ranks."""

from harness.spec import Card, Claim, Engine, Functions, Law
from impls.parallelism.context_parallel.grid import GRID

HERE = "impls.parallelism.context_parallel"
RING = "Liu et al. 2023, Ring Attention with Blockwise Transformers, arXiv:2310.01889"
STRIPED = "Brandon et al. 2023, Striped Attention, arXiv:2311.09431"
LLAMA = "Llama Team 2024, The Llama 3 Herd of Models, arXiv:2407.21783"
ULYSSES = "Jacobs et al. 2023, DeepSpeed Ulysses, arXiv:2309.14509"
COURSE = "AIInfra course, context parallelism practice"
USP = "Fang & Zhao 2024, USP, arXiv:2405.07719"

CARD = Card(
    name="context_parallel",
    title="Context parallelism",
    sources=(
        f"{ULYSSES}, §3.1",
        f"{RING}, §3, algorithm 1",
        f"{STRIPED}, §3",
        f"{LLAMA}, §3.3.2 (2N chunks, i and 2N−1−i)",
        f"{USP}, §3",
    ),
    variants={
        "ulysses": {"group": 0},
        "ring": {},
        "ring_striped": {"layout": "striped"},
        "ring_zigzag": {"layout": "zigzag"},
        "ring_packed": {"layout": "zigzag", "packed": True},
        "usp": {"layout": "zigzag", "group": 2},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(f"{HERE}.on_torch:build", variants=("ring", "ring_zigzag")),
        "deepspeed": Engine(f"{HERE}.on_deepspeed:build", requires=("deepspeed>=0.16",), variants=("ulysses",)),
        "megatron": Engine(
            f"{HERE}.on_megatron:build",
            requires=("cuda", "megatron-core>=0.16", "transformer-engine>=2.0"),
            variants=("ulysses", "ring_zigzag"),
        ),
        "yunchang": Engine(f"{HERE}.on_yunchang:build", requires=("yunchang>=0.6",), variants=("ulysses", "usp")),
        "ring_flash_attn": Engine(
            f"{HERE}.on_ring_flash_attn:build",
            requires=("ring-flash-attn>=0.1.8",),
            variants=("ring", "ring_striped", "ring_zigzag", "ring_packed"),
        ),
    },
    topologies=("cp2", "cp4"),
    contract=Functions(f"{HERE}.problem", telling=("packed",)),  # the other arguments only choose where to compute it
    grid=GRID,
    laws=(
        Law(
            "memory",
            "saved",
            f"{HERE}.laws:saved",
            0.01,
            "output, log-sum-exp and exchanged tensors: ÷ N",
            direction="at_most",
        ),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, f"{ULYSSES}, §3.2; {RING}, §3; N−1 hops"),
        Law("traffic", "across_groups", f"{HERE}.laws:across_groups", 0.0, f"{USP}, §3: rings across the nodes"),
    ),
    claims=(
        Claim("quadratic_cost", "512 → 8192 positions cost 256 ×", COURSE, f"{HERE}.claims:quadratic_cost"),
        Claim("activations", "activations 1/CP", COURSE, f"{HERE}.claims:activations"),
        Claim("recomputation", "recomputation costs about 30 %", COURSE, f"{HERE}.claims:recomputation"),
        Claim(
            "sum_of_softmaxes",
            "a ring adds the blocks' softmaxes, without a log-sum-exp",
            COURSE,
            f"{HERE}.claims:sum_of_softmaxes",
        ),
        Claim("balance", "zig-zag gives every rank the same causal work", LLAMA, f"{HERE}.claims:balance"),
    ),
)
