"""The work of this topic; in low precision on the mesh that every engine has. Of experts none there: rounding sends
tokens elsewhere. A run moves from two axes to two others: with a third it takes twice the ranks and shows no more."""

from harness.spec import Grid, Row

TWO_AXES, THREE_AXES = ("dp2tp2", "tp2pp2", "dp2pp2", "dp2cp2"), ("dp2tp2pp2",)
DENSE = (*TWO_AXES, *THREE_AXES)
EXPERTS = ("dp2ep2", "dp2tp2ep2", "dp2pp2ep2")
GRID = Grid(
    rows=(
        Row("meshed", "fp32", (*TWO_AXES, "tp2cp2")),
        Row("meshed", "fp32", THREE_AXES, ("mesh", "mesh_sp", "mesh_zero1")),
        Row("meshed", "bf16", ("dp2pp2",)),
        Row("meshed_experts", "fp32", EXPERTS),
        Row("meshed_experts", "fp32", ("tp2",), ("mesh_sp",)),
        Row("meshed_routed", "fp32", ("tp2",), ("mesh_sp",)),
        Row("meshed_padded", "fp32", ("dp2ep2",), ("mesh",)),
        Row("meshed_sequences", "fp32", ("dp2ep2",), ("mesh",)),
    ),
    timed=("meshed", "meshed_experts"),
)
