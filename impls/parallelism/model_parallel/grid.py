"""The work of this topic: one micro-batch, and layers that the ranks divide."""

from dataclasses import replace

from harness.spec import Grid, ModelConfig, Row, Workload
from harness.spec.named import NAMED

_FOUR = Workload("four_layers", ModelConfig(num_hidden_layers=4))
_THOROUGH = NAMED["thorough"].with_(
    name="thorough_whole", model=replace(NAMED["thorough"].model, num_hidden_layers=4), micro_batches=1
)
GRID = Grid(
    rows=(
        Row(_THOROUGH, "fp32", True),
        Row(_FOUR, "fp32", True),
        Row(_FOUR, "bf16", False),
        Row(NAMED["pipelined_tied"].with_(name="four_layers_tied", micro_batches=1), "fp32", True),
    ),
    timed=("four_layers",),
)
