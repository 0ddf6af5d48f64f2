"""Mixed precision: narrow passes, a loss scale, float32 masters."""

from harness.spec import Card, Engine, Law, Trainers
from impls.acceleration.mixed_precision.grid import GRID

HERE = "impls.acceleration.mixed_precision"
PAPER = "Micikevicius et al. 2018, Mixed Precision Training"
HIGH = {"initial": 2.0**19, "interval": 2}  # the first step overflows, and so does the one after the scale has grown

CARD = Card(
    name="mixed_precision",
    title="Mixed precision and loss scales",
    sources=(
        f"{PAPER}, §3.1 master copy of weights, §3.2 loss scaling, §3.3 arithmetic precision",
        "Rajbhandari et al. 2020, ZeRO, §3.1: 2Ψ + 2Ψ + 12Ψ bytes",
    ),
    variants={
        "fp16_dynamic": {"precision": "fp16", **HIGH},
        "fp16_hysteresis": {"precision": "fp16", "initial": 2.0**18, "interval": 2, "hysteresis": 2},
        "fp16_static": {"precision": "fp16", "initial": 2.0**10},
        "fp16_narrow": {"precision": "fp16", "initial": 2.0**15, "interval": 2, "wide": False},
        "fp16_autocast": {"precision": "fp16", **HIGH, "autocast": True},
        "bf16_masters": {"precision": "bf16"},
        "bf16_narrow": {"precision": "bf16", "wide": False},
        "bf16_autocast": {"precision": "bf16", "autocast": True},
        "bf16_pure": {"precision": "bf16", "masters": False, "wide": False},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(f"{HERE}.on_torch:build", variants=("fp16_autocast", "bf16_autocast", "bf16_pure")),
        "accelerate": Engine(
            f"{HERE}.on_accelerate:build", requires=("accelerate>=1",), variants=("fp16_autocast", "bf16_autocast")
        ),
        "deepspeed": Engine(
            f"{HERE}.on_deepspeed:build",
            requires=("deepspeed>=0.19",),
            variants=("fp16_narrow", "fp16_autocast", "bf16_narrow", "bf16_autocast"),
        ),
        "megatron": Engine(
            f"{HERE}.on_megatron:build",
            requires=("megatron-core>=0.16",),
            variants=("fp16_dynamic", "fp16_hysteresis", "fp16_static", "fp16_narrow", "bf16_masters", "bf16_narrow"),
        ),
    },
    topologies=("dp1", "dp2"),
    contract=Trainers(plain=f"{HERE}.plain", observes=True, replays=f"{HERE}.plain:replays"),
    grid=GRID,
    laws=(
        Law("memory", "states", f"{HERE}.laws:states", 0.05, f"{PAPER}, §3: 2+2+12 bytes a parameter"),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, f"{PAPER}, §3.3: sums in float32 are sent as such"),
    ),
)
