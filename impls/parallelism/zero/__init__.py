"""ZeRO: optimizer states, gradients and weights are partitioned over data-parallel ranks."""

from dataclasses import replace

from harness.spec import Card, Claim, Engine, Law, Row
from harness.spec.grid import TRAINER_GRID

HERE = "impls.parallelism.zero"

CARD = Card(
    name="zero",
    title="ZeRO: sharded data parallelism",
    sources=(
        "Rajbhandari et al. 2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, §5, §7",
        "Zhao et al. 2023, PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, §3",
    ),
    variants={"zero1": {"stage": 1}, "zero2": {"stage": 2}, "zero3": {"stage": 3}},
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(f"{HERE}.on_torch:build"),
        "deepspeed": Engine(f"{HERE}.on_deepspeed:build", requires=("deepspeed>=0.16",)),
        "megatron": Engine(f"{HERE}.on_megatron:build", requires=("megatron-core>=0.16",), variants=("zero1",)),
        "deepspeed_default": Engine(f"{HERE}.on_deepspeed:build_default", ("deepspeed>=0.16",), ("zero2",)),
        "deepspeed_manual": Engine(f"{HERE}.on_deepspeed:build_manual", ("deepspeed>=0.16",), ("zero1", "zero3")),
        "megatron_default": Engine(f"{HERE}.on_megatron:build_default", ("megatron-core>=0.16",), ("zero1",)),
        "fairscale": Engine(f"{HERE}.on_fairscale:build", requires=("fairscale>=0.4.13",)),
        "fairscale_default": Engine(
            f"{HERE}.on_fairscale:build_default", requires=("fairscale>=0.4.13",), variants=("zero2",)
        ),
        "colossalai": Engine(
            f"{HERE}.on_colossalai:build", ("colossalai>=0.5",), ("zero1", "zero2"), environment="colossalai-suites"
        ),
    },
    topologies=("dp1", "dp2", "dp3", "dp4"),
    grid=replace(
        TRAINER_GRID,
        rows=(
            *TRAINER_GRID.rows,
            # The model is applied through its engine and directly.
            Row("applied_twice", "fp32", ("dp2",), ("zero2",)),
            Row("poisoned", "fp32", ("dp2",), ("zero2",)),
            # Ranks leave out layers whose gradients the others have.
            Row("stochastic_depth", "fp32", ("dp2",)),
        ),
    ),
    laws=(
        Law(
            "memory",
            "states",
            f"{HERE}.laws:states",
            0.05,
            "Rajbhandari et al. 2020, §5: 4Ψ+12Ψ/N, 2Ψ+14Ψ/N, 16Ψ/N",
            direction="at_most",
        ),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "Rajbhandari et al. 2020, §7: 2Ψ, 2Ψ, 3Ψ"),
    ),
    claims=(
        Claim(
            "practice_memory",
            "GB at step end, 8 × Linear(2048)+ReLU, Adam: base .39, Z1 .39, Z2 .31, Z3 .11; Z1 saves 4×, Z2 8×, Z3 N×",
            "AIInfra course, ZeRO practice",
            f"{HERE}.claims:practice_memory",
        ),
        Claim(
            "adam_bytes",
            "the optimizer takes 16 bytes a parameter",
            "AIInfra course, ZeRO practice",
            f"{HERE}.claims:adam_bytes",
        ),
        Claim(
            "paper_7_5b",
            "7.5 B parameters, 64 GPUs, mixed-precision Adam: 120 GB → 31.4 (stage 1), 16.6 (2), 1.9 GB (3)",
            "Rajbhandari et al. 2020, figure 1",
            f"{HERE}.claims:paper_7_5b",
        ),
        Claim(
            "paper_traffic",
            "traffic of 2Ψ, 2Ψ and 3Ψ elements at stages 1, 2 and 3",
            "Rajbhandari et al. 2020, §7",
            f"{HERE}.claims:paper_traffic",
        ),
    ),
)
