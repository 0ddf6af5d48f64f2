"""The work of this topic: every step's gradient exceeds the threshold, some by a factor of three.

With so large an epsilon, AdamW's step is nearly linear in the gradient, so that a wrong norm is visible; with the usual
epsilon the step would hardly depend on the gradient's scale.
"""

from harness.spec import Grid, Row
from harness.spec.named import NAMED

_CLIPPED, _TIED = NAMED["clipped"], NAMED["uneven_tied"]

DENSE = ("dp2", "tp2", "pp2")
GRID = Grid(
    rows=(
        Row("thorough", "fp32", DENSE),
        Row("clipped", "fp32", DENSE),
        Row("clipped", "bf16", DENSE),
        # In bfloat16 the norm of this seed's gradients rounds up in every step, by 0.24 % on average.
        Row(_CLIPPED.with_(name="clipped_rounded", seed=220), "bf16", ("dp2",)),
        Row(_TIED.with_(name="clipped_uneven_tied", max_grad_norm=_CLIPPED.max_grad_norm), "fp32", DENSE),
        Row(
            _CLIPPED.with_(name="clipped_adamw", optimizer="adamw", lr=1.0, eps=1.0, weight_decay=0.1), "fp32", ("dp2",)
        ),
        Row("clipped_experts", "fp32", ("dp2ep2",)),
        Row("poisoned", "fp32", ("dp2",)),
    ),
    timed=("clipped", "clipped_experts"),
    timed_on=("dp2",),
)
