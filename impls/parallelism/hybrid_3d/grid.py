"""The work of this topic; in low precision on the mesh that every engine has. Of experts none there: rounding sends
tokens elsewhere. A run moves from two axes to two others: with a third it takes twice the ranks and shows no more.
Stages of a zero-bubble pipeline are two a rank, of one layer each."""

from dataclasses import replace

from harness.spec import Grid, Row
from harness.spec.named import NAMED

TWO_AXES, THREE_AXES = ("dp2tp2", "tp2pp2", "dp2pp2", "dp2cp2"), ("dp2tp2pp2",)
DENSE = (*TWO_AXES, *THREE_AXES)
EXPERTS = ("dp2ep2", "dp2tp2ep2", "dp2pp2ep2")
STAYING = ("mesh", "mesh_sp", "mesh_zero1")
ONE_STAGE = (*STAYING, "resharding", "resharding_dp")  # a rank
_MESHED = NAMED["meshed"]
DEEP = _MESHED.with_(name="meshed_deep", model=replace(_MESHED.model, num_hidden_layers=4))
# Work with routers' losses has one topology each, so that the default depth has it.
CONTEXT = NAMED["meshed_routed"].with_(name="meshed_context")
PIPED = NAMED["meshed_global"].with_(name="meshed_piped")
GRID = Grid(
    rows=(
        Row("meshed", "fp32", (*TWO_AXES, "tp2cp2"), ONE_STAGE),
        Row("meshed", "fp32", THREE_AXES, STAYING),
        Row("meshed", "bf16", ("dp2pp2",), ONE_STAGE),
        Row("meshed_experts", "fp32", EXPERTS, ONE_STAGE),
        Row("meshed_experts", "fp32", ("tp2",), ("mesh_sp",)),
        Row("meshed_routed", "fp32", ("tp2",), ("mesh_sp",)),
        Row(CONTEXT, "fp32", ("cp2",), ("mesh",)),
        Row("meshed_masked", "fp32", ("tp2",), ("mesh_sp",)),
        Row("meshed_global", "fp32", ("dp2ep2",), ("mesh",)),
        Row(PIPED, "fp32", ("pp2",), ("mesh",)),
        Row("meshed_padded", "fp32", ("dp2ep2",), ("mesh",)),
        Row("meshed_sequences", "fp32", ("dp2ep2",), ("mesh",)),
        Row(DEEP, "fp32", ("dp2pp2",), ("mesh_zero_bubble",)),
    ),
    timed=("meshed", "meshed_experts"),
)
