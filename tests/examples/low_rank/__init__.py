"""Low-rank adaptation of one frozen matrix, on pairs of vectors."""

from harness.spec import Card, Engine, Grid, Law, Row, Trainers, Workload

HERE = "tests.examples.low_rank"
WORK = Workload("regression", batch_size=16, micro_batches=2, optimizer="adamw", lr=1e-2, weight_decay=0.1, eps=1e-4)

CARD = Card(
    name="low_rank",
    title="A low-rank adapter of one matrix",
    sources=("Hu et al. 2021, LoRA, arXiv:2106.09685, section 4.1, equation 3",),
    variants={"rank4": {"rank": 4}},
    engines={"reference": Engine(f"{HERE}.reference:build")},
    topologies=("dp1", "dp2"),
    contract=Trainers(plain=f"{HERE}.plain", data=f"{HERE}.data", observes=True),
    grid=Grid((Row(WORK, "fp32", True), Row(WORK, "bf16", False)), timed=("regression",)),
    laws=(Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "one all-reduce of the adapter's gradients"),),
)
