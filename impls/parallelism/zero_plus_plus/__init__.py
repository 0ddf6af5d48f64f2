"""ZeRO++: ZeRO-3 with quantised and hierarchical communication."""

from harness.spec import Card, Claim, Engine, Law, Trainers
from impls.parallelism.zero_plus_plus.grid import GRID

HERE = "impls.parallelism.zero_plus_plus"
PAPER = "Wang et al. 2023, ZeRO++"
OFF = {"weight_bits": 0, "gradient_bits": 0, "hierarchical": False, "group": 2}

CARD = Card(
    name="zero_plus_plus",
    title="ZeRO++: quantised and hierarchical sharding",
    sources=(
        "Wang et al. 2023, ZeRO++: Extremely Efficient Collective Communication for Giant Model Training, §3.1 to §3.3",
    ),
    variants={
        "qwz": {**OFF, "weight_bits": 8},
        "hpz": {**OFF, "hierarchical": True},
        "qgz": {**OFF, "gradient_bits": 4},
        "zeropp": {"weight_bits": 8, "gradient_bits": 4, "hierarchical": True, "group": 2},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(f"{HERE}.on_torch:build", variants=("hpz",)),
        "deepspeed": Engine(
            f"{HERE}.on_deepspeed:build", requires=("deepspeed>=0.16",), variants=("qwz", "hpz", "qgz", "zeropp")
        ),
    },
    topologies=("dp2", "dp4"),
    contract=Trainers(plain=f"{HERE}.plain"),
    grid=GRID,
    laws=(
        Law(
            "memory",
            "states",
            f"{HERE}.laws:states",
            0.05,
            f"{PAPER}, §3.2: 16Ψ/N, and Ψe/g more with hpZ",
            direction="at_most",
        ),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, f"{PAPER}, §3: each message with its scales"),
        Law(
            "traffic",
            "across_groups",
            f"{HERE}.laws:across",
            0.0,
            f"{PAPER}, §3: 3Ψe → one gather in 8 bits and the second hop in 4, each with its scales",
        ),
    ),
    claims=(
        Claim(
            "paper_traffic",
            "traffic between nodes of 3M → 0.75M, M the weights in 2 bytes: 0.5M forward, 0 backward, 0.25M gradients",
            f"{PAPER}, §3",
            f"{HERE}.claims:paper_traffic",
        ),
        Claim(
            "paper_throughput",
            "up to 2.16 × the throughput of ZeRO-3 on 384 GPUs",
            f"{PAPER}, abstract",
            f"{HERE}.claims:paper_throughput",
        ),
    ),
)
