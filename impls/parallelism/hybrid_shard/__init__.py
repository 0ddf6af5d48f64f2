"""Hybrid sharding: ZeRO inside a group of ranks, replicas of the group across."""

from harness.spec import Card, Engine, Law
from impls.parallelism.hybrid_shard.grid import GRID

HERE = "impls.parallelism.hybrid_shard"
FSDP = "Zhao et al. 2023, PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel"
MICS = "Zhang et al. 2022, MiCS: Near-linear Scaling for Training Gigantic Model on Public Cloud"

CARD = Card(
    name="hybrid_shard",
    title="Hybrid sharding: HSDP and MiCS",
    sources=(f"{FSDP}, §3.2.2, equation 1", f"{MICS}, §3: partition groups, 2-hop gradient synchronisation"),
    variants={
        "hsdp": {"group": 2},
        "mics": {"group": 2, "two_hop": True},
        "hsdp_zero1": {"group": 2, "stage": 1},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(f"{HERE}.on_torch:build", variants=("hsdp", "mics")),
        "deepspeed": Engine(f"{HERE}.on_deepspeed:build", requires=("deepspeed>=0.19",), variants=("mics",)),
        "megatron": Engine(f"{HERE}.on_megatron:build", requires=("megatron-core>=0.16",), variants=("hsdp_zero1",)),
    },
    topologies=("dp2", "dp4"),
    grid=GRID,
    laws=(
        Law(
            "memory",
            "states",
            f"{HERE}.laws:states",
            0.05,
            f"{FSDP}, §3.2: a shard is 1/F of the states",
            direction="at_most",
        ),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, f"{FSDP}, §3.2.2: ZeRO in the group, 2Ψ/F across"),
        Law("traffic", "across_groups", f"{HERE}.laws:across", 0.0, f"{MICS}, §3: only gradients cross"),
    ),
)
