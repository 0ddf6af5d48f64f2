"""Recomputation of layers, with gradients bit-equal to those without it."""

from harness.spec import Card, Engine, Grid, ModelConfig, Row, Workload

HERE = "tests.examples.recomputed"
DROPPED = Workload("dropped", ModelConfig(dropout=0.1))

CARD = Card(
    name="recomputed",
    title="Recomputed layers",
    sources=("Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, section 3",),
    variants={"kept_layers": {"recompute": False}, "recomputed_layers": {"recompute": True}},
    engines={"reference": Engine(f"{HERE}.reference:build")},
    topologies=("dp1",),
    grid=Grid((Row(DROPPED, "fp32", True),), timed=()),
    twins={"recomputed_layers": "kept_layers"},
)
