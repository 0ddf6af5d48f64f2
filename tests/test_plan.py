"""The cases that a session runs, and the measures of each."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.measures import quality
from harness.plan import cases as plan
from harness.plan.cases import Request
from harness.spec import Case, Topology, Workload
from harness.spec.named import NAMED


def planned(request: Request) -> list[Case]:
    return plan.cases(request, plan.cards(request))


def measured(case: Case, request: Request, cores: int = 8) -> list[str]:
    return plan.measures(case, replace(request, cores=cores), plan.cards(Request())[case.topic])


def test_exactly_the_requested_cases_run() -> None:
    request = Request(("zero",), ("reference", "deepspeed"), ("tiny",), ("dp2",))
    ids = {case.id for case in planned(request)}
    assert ids == {f"zero{stage}-{engine}-dp2-fp32" for stage in (1, 2, 3) for engine in ("reference", "deepspeed")}


def test_nothing_asked_for_runs_every_topic_engine_and_variant() -> None:
    found = {(case.topic, case.engine, case.variant) for case in planned(Request())}
    for card in plan.cards(Request()).values():
        for engine, entry in card.engines.items():
            for variant in entry.variants or card.variants:
                assert ((card.name, engine, variant) in found) is not bool(entry.unavailable)


def test_an_unavailable_engine_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="'pipedream' can no longer be installed: a repository without"):
        planned(Request(engines=("reference", "pipedream")))


def test_every_trainer_case_is_run_in_low_precision_too() -> None:
    found = planned(Request(topics=("zero",)))
    assert {case.workload.dtype for case in found} == {"fp32", "bf16"}
    assert {case.workload.optimizer for case in found} == {"sgd", "adamw"}


def test_an_engine_runs_only_the_variants_that_it_has() -> None:
    assert {case.variant for case in planned(Request(("zero",), ("megatron",)))} == {"zero1"}


@pytest.mark.parametrize("topology", ["pp2", "pp4"])
def test_work_that_is_only_watched_is_judged_by_nothing_else_and_watched_in_place_of_the_timed(topology: str) -> None:
    request = Request(("pipeline_parallel",), ("reference",), topologies=(topology,))
    found = {c.workload.name: measured(c, request) for c in planned(request) if c.workload.dtype == "fp32"}
    for watched in {"pp2": ("compute_bound", "compute_bound_long"), "pp4": ("compute_bound_short",)}[topology]:
        assert found.pop(watched) == ["timeline"]
    timed = found.pop("pipelined_deep" if topology == "pp4" else "pipelined")
    assert timed == ["parity", "memory", "traffic", "throughput", "peers", "bottleneck"]
    assert not any("timeline" in measures for measures in found.values())


def test_work_that_is_asked_for_is_watched_whatever_the_topics_own() -> None:
    request = Request(("pipeline_parallel",), ("reference",), ("tiny",), ("pp2",))
    assert all("timeline" in measured(case, request) for case in planned(request))


def test_a_row_of_a_grid_may_be_about_some_variants_and_work_that_is_asked_for_is_about_all() -> None:
    def variants(request: Request) -> set[str]:
        return {case.variant for case in planned(request)}

    topic = ("hybrid_3d",)
    assert variants(Request(topic, topologies=("dp2tp2pp2",))) == {"mesh", "mesh_sp", "mesh_zero1"}
    everything = {"mesh", "mesh_sp", "mesh_zero1", "resharding", "resharding_dp"}
    assert variants(Request(topic, topologies=("dp2tp2",))) == everything
    assert variants(Request(topic, topologies=("tp2cp2",))) == everything  # in the grid, but in no session by default
    assert variants(Request(topic, topologies=("dp2pp2",))) == everything | {"mesh_zero_bubble"}
    asked = Request(topic, workloads=("meshed",), topologies=("dp2tp2pp2",))
    assert variants(asked) == everything | {"mesh_zero_bubble"}


def test_precisions_asked_for_replace_the_workloads_own() -> None:
    request = Request(("zero",), ("reference",), ("tiny",), ("dp2",), dtypes=("bf16", "fp64"))
    assert {case.workload.dtype for case in planned(request)} == {"bf16", "fp64"}


def test_a_topology_of_other_axes_than_a_topics_is_left_out_and_one_of_other_sizes_is_not() -> None:
    found = planned(Request(("zero", "tensor_parallel"), topologies=("dp8", "tp2", "dp1")))
    assert {(case.topic, str(case.topology)) for case in found} == {
        ("zero", "dp8"),
        ("zero", "dp1"),
        ("tensor_parallel", "tp2"),
        ("tensor_parallel", "dp1"),
    }


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            Request(("zero",), topologies=("dp2", "tp4")),
            "no topic asked for has the axes of tp4: zero: dp1, dp2, dp3, dp4",
        ),
        (Request(topics=("zerro",)), "unknown topic 'zerro'; did you mean zero?"),
        (Request(engines=("deepsped",)), "unknown engine 'deepsped'; did you mean deepspeed or "),
        (Request(measures=("paraty",)), "unknown measure 'paraty'; did you mean parity?"),
        (Request(dtypes=("fp23",)), "unknown dtype 'fp23'; did you mean fp32"),
        (Request(workloads=("tyny",)), "unknown workload 'tyny'; did you mean tiny"),
        (Request(workloads=("nowhere.toml",)), "there is no workload file nowhere.toml"),
        (Request(topologies=("2dp",)), "topology '2dp' is not a list of axis sizes such as dp2tp2"),
        (Request(topologies=("dq2",)), "unknown axis 'dq' in topology 'dq2'; known: dp, tp, pp, cp, ep"),
        (Request(topologies=("dp0",)), "topology axis dp must be at least 1, not 0"),
        (Request(workloads=("tiny",), topologies=("dp3",)), "batch_size 8 is not a multiple of dp × micro_batches = 3"),
        (Request(workloads=("tiny",), topologies=("tp3",)), "tp 3 does not divide model.num_attention_heads 8"),
    ],
)
def test_an_impossible_request_is_rejected_in_one_line(request_: Request, message: str) -> None:
    with pytest.raises(ValueError) as error:
        planned(request_)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_workload_file_that_fits_no_topology_of_its_topics_is_refused_and_one_that_fits_some_is_not(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("sequence_length = 31\n")
    with pytest.raises(
        ValueError, match="workload mine fits no topology of the topics asked for: cp 2 does not divide"
    ):
        planned(Request(("context_parallel",), workloads=(str(file), "tiny")))
    assert planned(Request(("zero",), workloads=(str(file),)))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / name / "sft.toml" for name in ("nightly", "weekly")]
    for steps, file in enumerate(files, 3):
        file.parent.mkdir()
        file.write_text(f"steps = {steps}\n")
    with pytest.raises(ValueError, match="are different workloads, but their cases would have the same ids"):
        planned(Request(("zero",), workloads=tuple(map(str, files))))


def test_a_workload_file_is_run_in_its_own_precision(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('batch_size = 4\ndtype = "bf16"\n')
    (case,) = planned(Request(("zero",), ("megatron",), (str(file),), ("dp2",)))
    assert case.id == "zero1-megatron-dp2-bf16-mine"


def test_traffic_is_measured_where_there_are_ranks_to_talk_to() -> None:
    alone, pair = (Case("zero", "zero1", "torch", Topology(dp=dp), Workload()) for dp in (1, 2))
    assert "traffic" not in measured(alone, Request())
    assert "traffic" in measured(pair, Request())


def test_ranks_that_would_share_a_core_are_not_timed() -> None:
    case = Case("zero", "zero1", "torch", Topology(dp=2), Workload())
    assert "throughput" in measured(case, Request(), cores=2)
    assert "throughput" not in measured(case, Request(), cores=1)
    large = Case("zero", "zero1", "torch", Topology(dp=2), NAMED["medium"])
    assert "throughput" in measured(large, Request(gpus=2), cores=1)
    assert "throughput" not in measured(large, Request(gpus=1), cores=8)


def test_one_workload_of_the_built_in_grid_is_timed() -> None:
    timed = {
        (case.workload.name, case.workload.dtype)
        for case in planned(Request(topics=("zero",)))
        if "throughput" in measured(case, Request())
    }
    assert timed == {("tiny", "fp32")}


def test_one_rank_alone_is_timed_only_on_request_or_on_gpus() -> None:
    def timed(request: Request) -> set[str]:
        return {str(case.topology) for case in planned(request) if "throughput" in measured(case, request)}

    for topic in (("zero_offload",), ("zero",)):
        assert timed(Request(topics=topic)) == {"dp2"}
        assert timed(Request(topics=topic, topologies=("dp1",))) == {"dp1"}
        assert timed(Request(topics=topic, gpus=2)) == {"dp1", "dp2"}


def test_gpus_are_timed_at_work_that_keeps_them_busy_which_has_no_oracle_unless_it_is_asked_for() -> None:
    request = Request(topics=("zero",), gpus=8)
    timed = {case for case in planned(request) if "throughput" in measured(case, request)}
    assert {(case.workload.name, case.workload.dtype) for case in timed} == {("medium", "bf16")}
    assert not any("parity" in measured(case, request) for case in timed)
    assert all("memory" in measured(case, request) for case in timed)
    asked = Request(topics=("zero",), workloads=("medium",), gpus=8)
    assert all("parity" in measured(case, asked) for case in planned(asked))


def test_quality_needs_a_trainer_and_enough_steps() -> None:
    long = NAMED["tiny"].with_(steps=quality.STEPS)
    assert "quality" in measured(Case("zero", "zero1", "torch", Topology(dp=2), long), Request())
    assert "quality" not in measured(Case("zero", "zero1", "torch", Topology(dp=2), Workload()), Request())
    assert "quality" not in measured(Case("flash_attention", "fa2", "reference", Topology(), long), Request())


def test_only_the_measures_asked_for_are_taken() -> None:
    case = Case("zero", "zero1", "torch", Topology(dp=2), Workload())
    assert measured(case, Request(measures=("memory", "quality"))) == ["memory"]
