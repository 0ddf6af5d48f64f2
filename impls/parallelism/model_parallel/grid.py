"""The work of this topic: one micro-batch, and layers that the ranks divide."""

from harness.spec import ModelConfig
from harness.spec.named import NAMED

_CUT = NAMED["tiny"].with_(name="four_layers", model=ModelConfig(num_hidden_layers=4))
GRID = (
    (_CUT, "fp32", True),
    (_CUT, "bf16", False),
    (NAMED["pipelined_tied"].with_(name="deep_tied", micro_batches=1), "fp32", True),
)
TIMED = ("four_layers",)
