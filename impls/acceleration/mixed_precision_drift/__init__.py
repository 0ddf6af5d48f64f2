"""The drift of training in bfloat16: with float32 masters, without, and with stochastic rounding."""

from harness.spec import Card, Claim, Engine, Flows
from impls.acceleration.mixed_precision_drift.grid import DRIFT, GRID

HERE = "impls.acceleration.mixed_precision_drift"
PAPER = "Micikevicius et al. 2018, Mixed Precision Training"

CARD = Card(
    name="mixed_precision_drift",
    title="Drift without float32 masters",
    sources=(
        f"{PAPER}, §3.1 and figure 2a",
        "Gupta et al. 2015, Deep Learning with Limited Numerical Precision, §2.1: stochastic rounding",
    ),
    variants={
        "drift_fp32": {"masters": True},
        "drift_masters": {"masters": True},
        "drift_bf16": {"masters": False},
        "drift_stochastic": {"masters": False, "stochastic": True},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:run"),
        "torch": Engine(f"{HERE}.on_torch:run", variants=("drift_masters",)),
        "torchao": Engine(f"{HERE}.on_torchao:run", requires=("torchao>=0.12",), variants=("drift_stochastic",)),
    },
    topologies=("dp1",),
    contract=Flows("loss", better="lower", seeds=5, budget=300 * DRIFT.batch_size),
    grid=GRID,
    claims=(
        Claim(
            "paper_masters",
            "training with a float32 master copy matches float32, and without it accuracy is lost",
            f"{PAPER}, §3.1",
            f"{HERE}.claims:paper_masters",
        ),
    ),
)
