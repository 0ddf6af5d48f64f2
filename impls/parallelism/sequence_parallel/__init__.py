"""Sequence parallelism: the tensors that tensor parallelism leaves whole between its blocks are cut along the
sequence."""

from harness.spec import Card, Claim, Engine, Law
from impls.parallelism.sequence_parallel.grid import GRID

HERE = "impls.parallelism.sequence_parallel"
KORTHIKANTI = "Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models"
SEQUENCE = ("sp", "sp_kept")

CARD = Card(
    name="sequence_parallel",
    title="Sequence parallelism",
    sources=(f"{KORTHIKANTI}, §4.2.2, figures 5 and 6, table 2",),
    # The technique; its naive form, which saves the gathered tensors; and tensor parallelism alone.
    variants={"sp": {}, "sp_kept": {"gather_again": False}, "sp_off": {"sequence_parallel": False}},
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(f"{HERE}.on_torch:build", variants=SEQUENCE),
        "megatron": Engine(f"{HERE}.on_megatron:build", requires=("megatron-core>=0.16",), variants=SEQUENCE),
    },
    topologies=("tp2", "tp4"),
    grid=GRID,
    laws=(
        Law(
            "memory",
            "states",
            f"{HERE}.laws:states",
            0.05,
            f"{KORTHIKANTI}, §4.2.2: the states of tensor parallelism",
            direction="at_most",
        ),
        Law(
            "memory",
            "activations",
            f"{HERE}.laws:activations",
            0.10,
            f"{KORTHIKANTI}, §4.2.2, table 2: all ÷ t",
            direction="at_most",
        ),
        Law(
            "traffic",
            "bytes",
            f"{HERE}.laws:traffic",
            0.0,
            f"{KORTHIKANTI}, §4.2.2: the bytes of tensor parallelism, and one more all-gather for each saved shard",
        ),
    ),
    claims=(
        Claim(
            "activation_memory",
            "with selective recomputation activation memory ÷ 5",
            f"{KORTHIKANTI}, abstract and figure 7",
            f"{HERE}.claims:activation_memory",
        ),
        Claim(
            "recomputation_time",
            "with selective recomputation over 90 % of the recomputation time recovered",
            f"{KORTHIKANTI}, abstract",
            f"{HERE}.claims:recomputation_time",
        ),
    ),
)
