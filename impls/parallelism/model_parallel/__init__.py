"""Model parallelism by layers: one micro-batch at a time passes through all ranks."""

from harness.spec import Card, Claim, Engine, Law
from impls.parallelism.model_parallel.grid import GRID

HERE = "impls.parallelism.model_parallel"
COURSE = "AIInfra course, model parallelism practice"
DEAN = "Dean et al. 2012, Large Scale Distributed Deep Networks"

CARD = Card(
    name="model_parallel",
    title="Model parallelism by layers",
    sources=(f"{DEAN}, §3", "Huang et al. 2019, GPipe, figure 2b"),
    variants={"layers": {}},
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(f"{HERE}.on_torch:build"),
        "accelerate": Engine(f"{HERE}.on_accelerate:build", requires=("accelerate>=1.0",)),
    },
    topologies=("pp2", "pp4"),
    grid=GRID,
    laws=(
        Law(
            "memory",
            "states",
            f"{HERE}.laws:states",
            0.05,
            f"{DEAN}, §3: each rank has its layers",
            direction="at_most",
        ),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "b·s·h a boundary and direction"),
        Law(
            "timeline",
            "bubble",
            f"{HERE}.laws:bubble",
            0.10,
            "Huang et al. 2019, figure 2b: one rank at a time",
            unit="",
            direction="at_most",
        ),
        Law(
            "timeline",
            "in_flight",
            f"{HERE}.laws:in_flight",
            0.0,
            "Huang et al. 2019, figure 2b",
            unit="",
            direction="at_most",
        ),
    ),
    claims=(
        Claim("boundary_traffic", "traffic 2·Σ sᵢ·b over the boundaries", COURSE, f"{HERE}.claims:boundary_traffic"),
        Claim("gpt3_weights", "175 B parameters in fp32 take 700 GB", COURSE, f"{HERE}.claims:gpt3_weights"),
    ),
)
