"""Data parallelism: every rank holds the model, gradients are averaged."""

from harness.spec import Card, Claim, Engine, Law

HERE = "impls.parallelism.data_parallel"

CARD = Card(
    name="data_parallel",
    title="Data parallelism",
    sources=(
        "Li et al. 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training, §3.2",
        "Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms, §4 (ring traffic)",
    ),
    variants={
        "ddp_naive": {"bucketed": False},
        "ddp": {},
        "ddp_no_sync": {"micro_batches": 2},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(f"{HERE}.on_torch:build", variants=("ddp", "ddp_no_sync")),
        "deepspeed": Engine(
            f"{HERE}.on_deepspeed:build", requires=("deepspeed>=0.16",), variants=("ddp", "ddp_no_sync")
        ),
        "megatron": Engine(
            f"{HERE}.on_megatron:build", requires=("megatron-core>=0.16",), variants=("ddp", "ddp_no_sync")
        ),
        "deepspeed_default": Engine(f"{HERE}.on_deepspeed:build_default", ("deepspeed>=0.16",), ("ddp",)),
        "megatron_default": Engine(f"{HERE}.on_megatron:build_default", ("megatron-core>=0.16",), ("ddp",)),
        "horovod": Engine(
            f"{HERE}.on_horovod:build", ("horovod>=0.28",), ("ddp", "ddp_no_sync"), environment="horovod-suites"
        ),
    },
    topologies=("dp1", "dp2", "dp3", "dp4"),
    laws=(
        Law(
            "memory", "states", f"{HERE}.laws:states", 0.05, "Rajbhandari et al. 2020, ZeRO, §3.1", direction="at_most"
        ),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "Patarasuk and Yuan 2009, §4: 2(N−1)/N of the gradient"),
    ),
    claims=(
        Claim(
            "linear_regression_speedup",
            "2.15 s on 1 GPU → 1.22 s on 2 (linear y = 2x+3, 10,000 samples, batch 32, 10 epochs)",
            "AIInfra course, data parallelism practice",
            f"{HERE}.claims:linear_regression_speedup",
        ),
    ),
)
