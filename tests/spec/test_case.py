"""Case ids: one alphabet, and one case for each."""

import re

from harness.plan import cases as plan
from harness.spec import Case, Topology, Workload


def test_the_id_names_variant_engine_topology_and_precision_and_any_other_workload() -> None:
    case = Case("zero", "zero3", "deepspeed", Topology(dp=2), Workload())
    assert case.id == "zero3-deepspeed-dp2-fp32"
    other = Case("zero", "zero3", "deepspeed", Topology(dp=2), Workload("uneven_tied", dtype="bf16"))
    assert other.id == "zero3-deepspeed-dp2-bf16-uneven_tied"


def test_ids_keep_to_their_alphabet_whatever_a_workload_file_is_called() -> None:
    assert Case("t", "v", "e", Topology(), Workload("My <b> run")).id == "v-e-dp1-fp32-my__b__run"


def test_no_two_cases_of_a_whole_run_share_an_id() -> None:
    request = plan.Request()
    ids = [case.id for case in plan.cases(request, plan.cards(request))]
    assert len(set(ids)) == len(ids) > 100
    assert all(re.fullmatch(r"[a-z0-9_.-]+", name) for name in ids)
