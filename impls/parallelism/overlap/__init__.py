"""Overlap: tensor parallelism's communication hidden behind computation."""

from harness.spec import Card, Claim, Engine, Law
from impls.parallelism.overlap.grid import GRID

HERE = "impls.parallelism.overlap"
DOMINO = "Wang et al. 2024, Domino: Eliminating Communication in LLM Training"
DECOMPOSITION = "Wang et al. 2023, Overlap Communication with Dependent Computation via Decomposition"
FLUX = "Chang et al. 2024, FLUX: Fast Software-based Communication Overlap On GPUs Through Kernel Fusion"

CARD = Card(
    name="overlap",
    title="Communication overlap",
    sources=(DOMINO, DECOMPOSITION, FLUX),
    # Each technique; the same pieces without overlap; and the whole operation that it divides.
    variants={
        "domino": {"technique": "domino"},
        "domino_waiting": {"technique": "domino", "overlap": False},
        "domino_off": {"technique": "tensor_parallel"},
        "async_tp": {"technique": "async_tp"},
        "async_tp_waiting": {"technique": "async_tp", "overlap": False},
        "async_tp_off": {"technique": "sequence_parallel"},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "deepspeed": Engine(f"{HERE}.on_deepspeed:build", requires=("deepspeed>=0.19",), variants=("domino",)),
        "torch": Engine(f"{HERE}.on_torch:build", requires=("cuda",), variants=("async_tp",)),
        "megatron": Engine(f"{HERE}.on_megatron:build", requires=("megatron-core>=0.16",), variants=("async_tp",)),
    },
    topologies=("tp2", "tp4"),
    grid=GRID,
    laws=(
        Law("memory", "states", f"{HERE}.laws:states", 0.05, "the bytes of tensor parallelism", direction="at_most"),
        Law(
            "memory",
            "activations",
            f"{HERE}.laws:activations",
            0.10,
            "those of tensor and of sequence parallelism",
            direction="at_most",
        ),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "those of tensor and of sequence parallelism"),
        Law(
            "timeline",
            "flights",
            f"{HERE}.laws:flights",
            0.0,
            f"{DOMINO}; {DECOMPOSITION}",
            unit="",
        ),
    ),
    claims=(
        Claim(
            "domino_speedup",
            "up to 1.3 times the throughput of Megatron-LM on DGX-H100",
            f"{DOMINO}, abstract",
            f"{HERE}.claims:domino_speedup",
        ),
        Claim(
            "flux_hidden",
            "up to 96 % of the communication overlapped by a fused kernel",
            f"{FLUX}, abstract",
            f"{HERE}.claims:flux_hidden",
        ),
        Claim(
            "flux_speedup",
            "up to 1.24 times the training throughput of Megatron-LM on 128 GPUs",
            f"{FLUX}, abstract",
            f"{HERE}.claims:flux_speedup",
        ),
    ),
)
