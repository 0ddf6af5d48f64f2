"""Gradient accumulation: several micro-batches, one update."""

from harness.spec import Card, Engine, Law
from impls.parallelism.gradient_accumulation.grid import GRID

HERE = "impls.parallelism.gradient_accumulation"
GOYAL = "Goyal et al. 2017, Accurate, Large Minibatch SGD"

CARD = Card(
    name="gradient_accumulation",
    title="Gradient accumulation",
    sources=(f"{GOYAL}, §3, remark 3: normalise by the size of the whole batch", "Ott et al. 2018, §3.4"),
    variants={"accumulate_tokens": {}, "accumulate_means": {"by_tokens": False}},
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(f"{HERE}.on_torch:build"),
        "deepspeed": Engine(f"{HERE}.on_deepspeed:build", requires=("deepspeed>=0.16",)),
        "accelerate": Engine(f"{HERE}.on_accelerate:build", requires=("accelerate>=1.0",)),
    },
    topologies=("dp1", "dp2", "dp3"),
    grid=GRID,
    laws=(
        Law(
            "memory",
            "states",
            "impls.parallelism.data_parallel.laws:states",
            0.05,
            "nothing is sharded",
            direction="at_most",
        ),
        Law(
            "memory",
            "activations",
            f"{HERE}.laws:activations",
            0.10,
            "one micro-batch at a time: ÷ k",
            direction="at_most",
        ),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "once a batch, not once a micro-batch: ÷ k"),
    ),
)
