"""The work of this topic; in low precision on the mesh that has every axis, and on the one that every engine has."""

GRID = (("meshed", "fp32", True), ("meshed", "bf16", ("dp2pp2", "dp2tp2pp2")))
TIMED = ("meshed",)
