"""Supervised fine-tuning on sequences that no rank holds whole, by Ulysses."""

from harness.spec import Card, Engine, Law, Trainers
from impls.finetuning.sft_ulysses.grid import GRID

HERE = "impls.finetuning.sft_ulysses"
ULYSSES = "Jacobs et al. 2023, DeepSpeed Ulysses, arXiv:2309.14509"
ENGINE = ("deepspeed>=0.18.2", "transformers>=5", "accelerate>=1.12")

CARD = Card(
    name="sft_ulysses",
    title="Supervised fine-tuning with sequences across ranks",
    sources=(
        f"{ULYSSES}, §3.1",
        "Bekman et al. 2025, Arctic Long Sequence Training, arXiv:2506.13996, §3.1: labels are shifted before the cut",
        "Krell et al. 2021, Efficient Sequence Packing without Cross-contamination, arXiv:2107.02027, §3.2",
    ),
    variants={"sft_ulysses": {}, "sft_ulysses_packed": {"packing": "rows"}},
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        # With SDPA its documentation excludes packed rows; on a CPU there is no FlashAttention.
        "accelerate": Engine(f"{HERE}.on_accelerate:build", requires=ENGINE, variants=("sft_ulysses",)),
    },
    topologies=("cp2", "cp4", "dp2cp2"),
    contract=Trainers(plain="impls.finetuning.sft.plain", data="impls.finetuning.sft.data", reads="conversations"),
    grid=GRID,
    laws=(
        Law("memory", "states", f"{HERE}.laws:states", 0.05, "weights and gradients are whole", direction="at_most"),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.002, f"{ULYSSES}, §3.2, in each layer", direction="at_most"),
    ),
)
