"""Gradient clipping: the norm of gradients that are distributed over ranks."""

from harness.spec import Card, Engine, Law
from impls.acceleration.gradient_clipping.grid import GRID

HERE = "impls.acceleration.gradient_clipping"

CARD = Card(
    name="gradient_clipping",
    title="Gradient clipping by global norm",
    sources=(
        "Pascanu et al. 2013, On the Difficulty of Training Recurrent Neural Networks, §3.2, algorithm 1",
        "Zhao et al. 2023, PyTorch FSDP, §7.2.1: what needs a whole vector, such as its norm, needs communication",
    ),
    # The topology gives the axis over which parameters are distributed; the variant shards further tensors over dp.
    variants={"clip": {}, "clip_zero1": {"stage": 1}, "clip_zero3": {"stage": 3}},
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(f"{HERE}.on_torch:build", variants=("clip", "clip_zero3")),
        "deepspeed": Engine(f"{HERE}.on_deepspeed:build", requires=("deepspeed>=0.19",)),
        "megatron": Engine(
            f"{HERE}.on_megatron:build", requires=("megatron-core>=0.16",), variants=("clip", "clip_zero1")
        ),
    },
    topologies=("dp2", "tp2", "pp2", "dp2ep2"),
    grid=GRID,
    laws=(Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "a norm is one number: no extra bytes of data"),),
)
