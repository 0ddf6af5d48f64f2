"""The global norm of parameters that are distributed over ranks, and clipping by it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from harness.launch.outcome import Done, Job, describe
from harness.launch.rank import Context
from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, Topology, Unsupported
from impls.acceleration import gradient_clipping
from impls.acceleration.gradient_clipping.layout import check
from impls.common.clipping import clip_by_global_norm, global_norm
from impls.common.optimizer import PIECE, square
from tests.impls.work import CLIPPED as WORK

SMALL = WORK.with_(
    name="small_clipped",
    model=ModelConfig(97, 22, 42, 2, 2, 2, 6, tie_word_embeddings=True),
    max_grad_norm=0.5,
)
CARD = replace(gradient_clipping.CARD, variants={**gradient_clipping.CARD.variants, "clip_zero2": {"stage": 2}})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_square_is_exact_however_long_or_narrow_the_tensor_is(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in ((64 * PIECE + 1,), (5, 7), ())]
    exact = sum(float(tensor.double().square().sum()) for tensor in tensors)
    chance = (64 * PIECE) ** 0.5 * torch.finfo(torch.float64).eps
    assert float(square(tensors)) == pytest.approx(exact, rel=chance)


def test_no_tensors_have_no_norm() -> None:
    assert float(square([])) == float(global_norm({(): []})) == 0.0


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=6), st.floats(1e-2, 1e4))
def test_clipping_scales_down_to_the_threshold_and_never_up(values: list[float], max_norm: float) -> None:
    before = torch.tensor(values)
    after = [before.clone()[:2], before.clone()[2:]]
    clip_by_global_norm({(): after}, max_norm)
    norm = float(before.double().norm())
    if norm < max_norm - 2e-6:
        assert torch.equal(torch.cat(after), before)
    else:
        assert float(torch.cat(after).double().norm()) <= max_norm * (1 + 1e-6)
        assert torch.allclose(torch.cat(after), before * (max_norm / (norm + 1e-6)), rtol=1e-5)


def test_a_threshold_of_zero_is_none() -> None:
    gradient = torch.full((3,), 1e9)
    clip_by_global_norm({(): [gradient]}, 0.0)
    assert gradient.eq(1e9).all()


def layouts(context: Context) -> dict[str, Any]:
    """On a mesh of 2 × 2: norms of tensors divided over rows, columns, both or none, and of a stage without tensors."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("row", "column"))
    row, column = mesh.get_group("row"), mesh.get_group("column")
    generator = torch.Generator().manual_seed(0)
    full = {name: torch.randn(4, 6, generator=generator) for name in ("row", "column", "both", "none", "first")}

    def part(tensor: Tensor, *groups: dist.ProcessGroup) -> Tensor:
        for group in groups:
            tensor = tensor.chunk(group.size(), 0)[group.rank()]
        return tensor.clone()

    mine = {
        (row,): [part(full["row"], row), *([full["first"]] if row.rank() == 0 else [])],
        (column,): [part(full["column"], column)],
        (row, column): [part(full["both"], row, column)],
        (): [full["none"].clone()],
    }
    naive = {(row, column): [tensor for part in mine.values() for tensor in part]}
    return {
        "dense": float(torch.cat([tensor.flatten() for tensor in full.values()]).double().norm()),
        "found": float(global_norm(mine)),
        "naive": float(global_norm(naive)),
    }


def test_each_element_counts_once_however_it_is_spread(lab: Lab) -> None:
    world = lab.runner.launcher.world(4, "reference", CARD.engines["reference"].build.partition(":")[0])
    outcomes = world.run(Job(f"{__name__}:layouts", {}), timeout=30)
    world.close()
    assert all(isinstance(outcome, Done) for outcome in outcomes), describe(outcomes)
    found = [outcome.value for outcome in outcomes if isinstance(outcome, Done)]
    assert len({each["found"] for each in found}) == 1
    assert found[0]["found"] == pytest.approx(found[0]["dense"], rel=1e-6)
    assert found[0]["naive"] > 1.2 * found[0]["dense"]


@pytest.mark.parametrize(
    ("variant", "engine", "topology"),
    [
        ("clip", "reference", Topology(dp=2)),
        ("clip_zero1", "reference", Topology(dp=4)),
        ("clip_zero2", "reference", Topology(dp=2)),
        ("clip_zero3", "reference", Topology(dp=4)),
        ("clip", "reference", Topology(dp=2, tp=2)),
        ("clip", "reference", Topology(pp=2)),
    ],
    ids=str,
)
def test_updates_are_those_of_the_dense_norm(lab: Lab, variant: str, engine: str, topology: Topology) -> None:
    measurements = lab.measure("parity", Case(CARD.name, variant, engine, topology, SMALL.with_(dtype="fp64")))
    assert {measurement.quantity for measurement in measurements} >= {"gradient", "update", "loss"}
    assert [measurement.reason for measurement in measurements if measurement.verdict != "pass"] == []


@pytest.mark.parametrize("variant", ["clip", "clip_zero3"])
def test_the_norm_is_control_and_adds_no_data(lab: Lab, variant: str) -> None:
    by_op = {}
    for work in (SMALL, SMALL.with_(name="unclipped", max_grad_norm=0.0)):
        (measurement,) = lab.measure("traffic", Case(CARD.name, variant, "reference", Topology(dp=2), work))
        assert measurement.value == measurement.law, measurement.reason
        by_op[work.name] = measurement.detail["control"]
    assert by_op["small_clipped"] - by_op["unclipped"] == (8 if variant == "clip_zero3" else 0)  # one float64, 2 ranks


@pytest.mark.parametrize(
    ("topology", "stage", "reason"),
    [
        (Topology(tp=2), 3, "ZeRO's stage 3 on tp2"),
        (Topology(pp=2), 1, "ZeRO's stage 1 on pp2"),
        (Topology(dp=2, pp=2), 0, "clipping on dp2pp2"),
        (Topology(dp=2, ep=2), 1, "ZeRO's stage 1 on dp2ep2"),
    ],
    ids=str,
)
def test_a_layout_of_other_topics_says_so(topology: Topology, stage: int, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        check(topology, stage)
