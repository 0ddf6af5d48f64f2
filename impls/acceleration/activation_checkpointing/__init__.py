"""Activation checkpointing: the backward pass computes again what the forward pass did not keep."""

from harness.spec import Card, Claim, Engine, Law
from impls.acceleration.activation_checkpointing.grid import GRID

HERE = "impls.acceleration.activation_checkpointing"
CHEN = "Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost"
COURSE = "AIInfra course, activation checkpointing"
KORTHIKANTI = "Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models"
VARIANTS = {
    "no_recompute": {},
    "recompute_layers": {"each": 1},
    "recompute_two_layers": {"each": 2},
    "recompute_sqrt": {"each": "sqrt"},
    "recompute_nested": {"nested": True},
    "recompute_attention": {"attention_alone": True},
    "recompute_operators": {"each": 1, "by_operator": True},
    "recompute_offload": {"each": 1, "on_host": True},
}
RECOMPUTED = tuple(VARIANTS)[1:]

CARD = Card(
    name="activation_checkpointing",
    title="Activation checkpointing",
    sources=(f"{CHEN}, §3, §4", f"{KORTHIKANTI}, §5: selective"),
    variants=VARIANTS,
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(f"{HERE}.on_torch:build", variants=RECOMPUTED),
        "torch_reentrant": Engine(
            f"{HERE}.on_torch:build_reentrant",
            variants=("recompute_layers", "recompute_attention"),
        ),
        "deepspeed": Engine(
            f"{HERE}.on_deepspeed:build",
            requires=("deepspeed>=0.16",),
            variants=("recompute_layers", "recompute_sqrt", "recompute_offload"),
        ),
        "deepspeed_partitioned": Engine(
            f"{HERE}.on_deepspeed:build_partitioned", requires=("deepspeed>=0.19",), variants=("recompute_layers",)
        ),
        "megatron": Engine(
            f"{HERE}.on_megatron:build",
            requires=("megatron-core>=0.16",),
            variants=("recompute_layers", "recompute_sqrt", "recompute_attention"),
        ),
        "megatron_block": Engine(
            f"{HERE}.on_megatron:build_block", requires=("megatron-core>=0.16",), variants=("recompute_layers",)
        ),
        "fairscale": Engine(
            f"{HERE}.on_fairscale:build",
            requires=("fairscale>=0.4.13",),
            variants=("recompute_layers", "recompute_offload"),
        ),
    },
    topologies=("dp1", "dp2", "tp2"),
    grid=GRID,
    laws=(
        Law(
            "memory",
            "activations",
            f"{HERE}.laws:activations",
            0.10,
            f"{CHEN}, §4.3: segments' inputs; {KORTHIKANTI}, §5: all but the scores",
            direction="at_most",
        ),
        Law(
            "flops",
            "step",
            f"{HERE}.laws:step",
            0.0,
            "2 a token and weight forward, twice as many backward",
            unit="FLOP",
        ),
        Law(
            "flops",
            "recomputed",
            f"{HERE}.laws:recomputed",
            0.0,
            f"{CHEN}, §4.3: one more forward pass; {KORTHIKANTI}, §5: attention's products",
            unit="FLOP",
        ),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "a replay repeats its sums over tensor-parallel ranks"),
    ),
    claims=(
        Claim(
            "course_saving",
            "segments of √L layers save 1 − √L/L of the activations",
            COURSE,
            f"{HERE}.claims:course_saving",
        ),
        Claim(
            "course_compute",
            "extra compute 2√L/L, and in the same passage about double",
            COURSE,
            f"{HERE}.claims:course_compute",
        ),
        Claim(
            "chen_compute",
            "one more forward pass for each batch, 30 percent more time",
            f"{CHEN}, abstract",
            f"{HERE}.claims:chen_compute",
        ),
        Claim(
            "korthikanti_layer",
            "a layer keeps s·b·h (34 + 5as/h) bytes; selective recomputation drops 5as/h",
            f"{KORTHIKANTI}, §4.1, §5",
            f"{HERE}.claims:korthikanti_layer",
        ),
        Claim(
            "korthikanti_operations",
            "over 90 % of the recomputation's overhead recovered",
            f"{KORTHIKANTI}, abstract",
            f"{HERE}.claims:korthikanti_operations",
        ),
    ),
    twins=dict.fromkeys(RECOMPUTED, "no_recompute"),
)
