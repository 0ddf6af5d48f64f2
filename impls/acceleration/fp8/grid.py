"""Sizes that every engine's kernels take, in both precisions, and others that no tile divides."""

from harness.spec import Grid, ModelConfig, Row, Workload

ALIGNED = Workload("aligned", ModelConfig(hidden_size=256, intermediate_size=384), batch_size=2, sequence_length=128)
RAGGED = Workload("ragged", ModelConfig(hidden_size=205, intermediate_size=301), batch_size=3, sequence_length=47)

GRID = Grid((Row(ALIGNED, "fp32", True), Row(ALIGNED, "bf16", True), Row(RAGGED, "fp32", True)), timed=("aligned",))
