"""The work of this topic; in low precision on the mesh that every engine has. Of experts none there: rounding sends
tokens elsewhere."""

DENSE = ("dp2tp2", "tp2pp2", "dp2pp2", "dp2cp2", "dp2tp2pp2")
GRID = (
    ("meshed", "fp32", DENSE),
    ("meshed", "bf16", ("dp2pp2",)),
    ("meshed_experts", "fp32", ("dp2ep2", "dp2tp2ep2", "dp2pp2ep2")),
)
TIMED = ("meshed", "meshed_experts")
