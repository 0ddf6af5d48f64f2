"""The work of this topic: one micro-batch, and layers that the ranks divide."""

from harness.spec import ModelConfig, Workload
from harness.spec.named import NAMED

_FOUR = Workload("four_layers", ModelConfig(num_hidden_layers=4))
GRID = (
    (_FOUR, "fp32", True),
    (_FOUR, "bf16", False),
    (NAMED["pipelined_tied"].with_(name="four_layers_tied", micro_batches=1), "fp32", True),
)
TIMED = ("four_layers",)
