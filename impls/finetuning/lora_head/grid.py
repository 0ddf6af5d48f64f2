"""The work of this topic: models whose ends have a matrix each, and tied ones. By SGD, two steps of one weight by two
gradients are one step by their sum; by AdamW they are not."""

from dataclasses import replace

from harness.spec import Grid, Row
from harness.spec.named import NAMED

APART = ("lora_embedding", "lora_head", "lora_ends")
TIED = ("lora_tied",)
ADAPTED = NAMED["thorough"].with_(name="adapted", steps=5)
SHARED = ADAPTED.with_(name="adapted_tied", model=replace(ADAPTED.model, tie_word_embeddings=True))

GRID = Grid(
    rows=(
        Row(ADAPTED, "fp32", True, APART),
        Row(ADAPTED, "bf16", False, APART),
        Row(SHARED, "fp32", True, TIED),
        Row(SHARED, "bf16", True, TIED),
        Row("uneven_tied", "fp32", False, TIED),
        Row("tiny_adamw", "fp32", False, APART, full=True),
        Row("tiny_adamw", "bf16", True, APART, full=True),
    ),
    timed=(),
)
