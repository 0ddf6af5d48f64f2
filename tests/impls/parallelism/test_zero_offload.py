"""ZeRO-Offload and ZeRO-Infinity on two CPU ranks: work that the suites do not have, the laws and the claims."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.launch.local import LocalLauncher
from harness.run.lab import Lab
from harness.spec import Case, Engine, Measurement, ModelConfig, Topology, Trainer, Workload
from harness.spec.named import NAMED
from impls.parallelism import zero_offload
from impls.parallelism.zero import laws as zero_laws
from impls.parallelism.zero_offload import claims, laws, reference
from tests import labs
from tests.impls.work import CLIPPED as WORK

CARD = zero_offload.CARD
DP1, DP2 = Topology(), Topology(dp=2)
MIXED = NAMED["tiny_adamw"].with_(dtype="bf16")
CLIPPED = WORK.with_(model=ModelConfig(131, 45, 76, 2, 4, 2, 6, tie_word_embeddings=True), sequence_length=13)


def case(variant: str, engine: str, workload: Workload, topology: Topology = DP2) -> Case:
    return Case(CARD.name, variant, engine, topology, workload)


def failed(measurements: list[Measurement]) -> list[str]:
    return [measurement.reason for measurement in measurements if measurement.verdict != "pass"]


@pytest.mark.parametrize("variant", CARD.variants)
def test_micro_batches_and_clipping_are_those_of_the_dense_model(lab: Lab, variant: str) -> None:
    work = case(variant, "reference", CLIPPED)
    measurements = lab.measure("parity", work)
    assert {measurement.quantity for measurement in measurements} >= {"gradient", "update", "loss"}
    assert failed(measurements) == []
    (traffic,) = lab.measure("traffic", work)
    assert (traffic.verdict, traffic.value) == ("pass", traffic.law), traffic.reason


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_engines_clip_and_accumulate_as_the_dense_model_does(lab: Lab, engine: str) -> None:
    assert failed(lab.measure("parity", case("offload_params", engine, CLIPPED))) == []


def test_double_precision_is_stepped_in_double_precision(lab: Lab) -> None:
    measurements = lab.measure("parity", case("nvme_params", "reference", CLIPPED.with_(dtype="fp64")))
    assert (
        failed([measurement for measurement in measurements if measurement.quantity != "loss"]) == []
    )  # the sum is in float32


def test_states_in_files_are_not_in_memory(lab: Lab) -> None:
    """Each step of the saving: the optimizer's 12Ψ/N, and in stage 3 the weights' 2Ψ/N, less the buffers."""
    variants = ("offload_optimizer", "nvme_optimizer", "nvme_params")
    held = [lab.measure("memory", case(variant, "reference", MIXED))[0] for variant in variants]
    assert failed(held) == []
    here, optimizer, all_of_it = (measurement.value for measurement in held)
    assert here is not None
    assert optimizer is not None
    assert all_of_it is not None
    psi, unmoved = MIXED.model.parameters, laws.buffers(MIXED, DP2, **CARD.variants["nvme_optimizer"])
    assert here - optimizer == pytest.approx(6 * psi - unmoved, rel=0.01)
    assert all_of_it < optimizer


def in_a_missing_folder(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    return reference.build(workload, topology, folder="/nowhere/at/all", **variant)


def test_a_missing_folder_ends_the_case_with_one_clear_error(lab: Lab) -> None:
    engines = {**CARD.engines, "lost": Engine(f"{__name__}:in_a_missing_folder")}
    lab.runner.cards = {CARD.name: type(CARD)(**{**vars(CARD), "engines": engines})}
    try:
        (measurement,) = lab.measure("parity", case("nvme_optimizer", "lost", MIXED, DP1))
    finally:
        lab.runner.cards = {CARD.name: CARD}
    assert measurement.verdict == "error"
    assert "cannot make a file in /nowhere/at/all for offloaded states: No such file or directory" in measurement.reason


def test_a_rank_leaves_no_file_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with LocalLauncher() as launcher:
        alone = labs.make({CARD.name: CARD}, launcher=launcher, capacity=1)
        assert alone.runner.checked(case("nvme_params", "reference", MIXED, DP1)).problem is None
        folders = [path for path in tmp_path.rglob("*") if path.is_file() and "server" not in path.name]
    assert folders == []


@pytest.mark.parametrize(
    ("variant", "engine", "workload", "reason"),
    [
        ("offload_optimizer", "zenflow", CLIPPED.with_(optimizer="sgd"), "ZenFlow takes AdamW only, not sgd"),
        ("offload_params", "deepspeed", CLIPPED.with_(dtype="fp64"), "float32, float16 and bfloat16 only"),
        ("nvme_optimizer", "deepspeed", CLIPPED, "treat the device nvme as cpu without a warning"),
    ],
)
def test_unsupported_work_is_skipped_with_the_reason(
    lab: Lab, variant: str, engine: str, workload: Workload, reason: str
) -> None:
    (measurement,) = lab.measure("parity", case(variant, engine, workload))
    assert measurement.verdict == "skipped"
    assert reason in measurement.reason


def test_an_operator_that_cannot_be_built_is_a_skip_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("CC", "/bin/false")
    with LocalLauncher() as launcher:
        alone = labs.make({CARD.name: CARD}, launcher=launcher, capacity=1)
        (measurement,) = alone.measure("parity", case("nvme_states", "deepspeed", MIXED, DP1))
        alone.runner.close()
    assert measurement.verdict == "skipped"
    assert measurement.reason.startswith(
        "DeepSpeed's async_io cannot be built here: it needs a C++ compiler and libaio-dev"
    )


def naive(p: float, m: float, v: float, g: float, count: int, work: Workload) -> tuple[float, float, float]:
    """AdamW as in its paper, one number at a time."""
    (first, second), rate = work.betas, work.lr
    m, v = first * m + (1 - first) * g, second * v + (1 - second) * g * g
    m_hat, v_hat = m / (1 - first**count), v / (1 - second**count)
    return p - rate * (m_hat / (v_hat**0.5 + work.eps) + work.weight_decay * p), m, v


@settings(max_examples=50)
@given(
    numbers=st.lists(st.tuples(*[st.floats(-2, 2)] * 3), min_size=1, max_size=40),
    rate=st.floats(1e-4, 1.0),
    decay=st.floats(0.0, 0.2),
)
def test_the_hosts_step_is_adamws_formula(numbers: list[tuple[float, float, float]], rate: float, decay: float) -> None:
    work = CLIPPED.with_(lr=rate, weight_decay=decay, eps=1e-3, dtype="fp64")
    start, *gradients = zip(*numbers, strict=True)
    rows = [torch.tensor(start, dtype=torch.float64), *torch.zeros(2, len(start), dtype=torch.float64)]
    expected = [(p, 0.0, 0.0) for p in start]
    for count, gradient in enumerate(gradients, start=1):
        reference.step(rows, torch.tensor(gradient, dtype=torch.float64), count, work)
        expected = [naive(*state, g, count, work) for state, g in zip(expected, gradient, strict=True)]
    for row, numbers_of_row in zip(rows, zip(*expected, strict=True), strict=True):
        assert torch.allclose(row, torch.tensor(numbers_of_row, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_plain_sgd_steps_without_moments() -> None:
    p = torch.tensor([1.0, -2.0])
    reference.step([p], torch.tensor([0.5, 0.25], dtype=torch.bfloat16), 1, Workload(lr=0.1))
    assert torch.equal(p, torch.tensor([1.0, -2.0]) - 0.1 * torch.tensor([0.5, 0.25]))


def test_the_device_keeps_the_weights_and_the_host_the_rest() -> None:
    psi = MIXED.model.parameters
    here = CARD.variants["offload_optimizer"]
    assert laws.device(MIXED, DP1, **here) == 2 * psi
    assert laws.states(MIXED, DP1, **here) == 16 * psi
    assert laws.states(MIXED, DP2, **here) == (2 + 14 / 2) * psi == zero_laws.states(MIXED, DP2, 2)
    assert laws.device(MIXED, DP1, **CARD.variants["offload_params"]) == 0
    assert laws.states(MIXED, DP2, **CARD.variants["offload_params"]) == 8 * psi


def test_states_in_files_count_only_by_their_buffers() -> None:
    """Ψ 1,216: an attention block of 112, an MLP of 96, and the rest; the smallest piece is 4,096 elements."""
    work = Workload(model=ModelConfig(64, 8, 4, 1, 2, 1, 4), dtype="bf16", optimizer="adamw")
    attention, mlp, rest = 2 * 8 * 8 + 2 * 4 * 8 + 2 * 4, 3 * 4 * 8, 2 * 64 * 8 + 3 * 8
    assert attention + mlp + rest == work.model.parameters
    assert (laws.largest(work, 1), laws.largest(work, 3)) == (rest, -(-rest // 3))
    states = 3 * (16384 + 4096)  # 12 bytes for each of 1,048 elements, in blocks, and one block for alignment
    assert laws.buffers(work, DP1, **CARD.variants["nvme_optimizer"]) == states
    weights = 2 * (4096 + 4096) + 2 * (4096 + 4096)
    assert laws.buffers(work, DP1, **CARD.variants["nvme_params"]) == states + weights
    psi = work.model.parameters
    assert laws.states(work, DP1, **CARD.variants["nvme_optimizer"]) == 4 * psi + states
    assert laws.states(work, DP1, **CARD.variants["nvme_states"]) == 4 * psi + states
    assert laws.states(work, DP2, **CARD.variants["nvme_params"]) == pytest.approx(
        psi + laws.buffers(work, DP2, **CARD.variants["nvme_params"])
    )


def _record(each: float, meter: str) -> dict[str, Any]:
    psi = 1000
    return {**claims.MIXED, **claims.STATES, "value": each * psi, "law": 16.0 * psi, "detail": {"meter": meter}}


def test_the_papers_13b_is_measured_on_a_device_only() -> None:
    assert claims.paper_13b([]).detail["status"] == "out of reach here"
    together = claims.paper_13b([_record(16.0, "counting allocator")])
    assert (together.detail["status"], together.value) == ("formula only", None)
    assert claims.paper_13b([_record(2.0, "cuda caching allocator")]).detail["status"] == "reproduced"
    assert claims.paper_13b([_record(4.0, "cuda caching allocator")]).detail["status"] == "contradicted"
    assert "2 × 13 B = 26 GB" in together.detail["arithmetic"]
    assert laws.device(MIXED, DP1, **CARD.variants["offload_optimizer"]) / MIXED.model.parameters == claims.DEVICE
    assert laws.states(MIXED, DP1, **CARD.variants["offload_optimizer"]) / MIXED.model.parameters == claims.WHOLE
