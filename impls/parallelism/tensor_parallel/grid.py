"""The work of this topic: what all trainers do, and what users put around a model on one rank and on two."""

from dataclasses import replace

from harness.spec import Row
from harness.spec.grid import TRAINER_GRID

GRID = replace(
    TRAINER_GRID,
    rows=(
        *(row._replace(variants=("tp",)) for row in TRAINER_GRID.rows),
        Row("thorough", "fp32", ("dp1", "tp2"), ("tp_validated", "tp_own_head")),
    ),
)
