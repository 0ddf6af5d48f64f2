"""Overlap: tensor parallelism's communication hidden behind computation."""

from harness.spec import Card, Engine, Law

HERE = "impls.parallelism.overlap"
DOMINO = "Wang et al. 2024, Domino: Eliminating Communication in LLM Training"
DECOMPOSITION = "Wang et al. 2023, Overlap Communication with Dependent Computation via Decomposition"
FLUX = "Chang et al. 2024, FLUX: Fast Software-based Communication Overlap On GPUs Through Kernel Fusion"

CARD = Card(
    name="overlap",
    title="Communication overlap",
    sources=(DOMINO, DECOMPOSITION, FLUX),
    # Each technique, and the same pieces with nothing overlapped.
    variants={
        "domino": {"technique": "domino"},
        "domino_waiting": {"technique": "domino", "overlap": False},
        "async_tp": {"technique": "async_tp"},
        "async_tp_waiting": {"technique": "async_tp", "overlap": False},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
    },
    topologies=("tp2", "tp4"),
    laws=(
        Law("memory", "states", f"{HERE}.laws:states", 0.05, "those of tensor parallelism"),
        Law("memory", "activations", f"{HERE}.laws:activations", 0.10, "those of tensor and of sequence parallelism"),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "those of tensor and of sequence parallelism"),
        Law("timeline", "flights", f"{HERE}.laws:flights", 0.0, f"{DOMINO}; {DECOMPOSITION}"),
    ),
)
