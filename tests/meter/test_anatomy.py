"""Each moment of a step belongs to one part: planted events, and steps whose bound is known."""

import time
from collections.abc import Callable

import pytest
import torch

from harness.meter.anatomy import Event, anatomy, event_cost, kind, profiled
from harness.spec.run import Anatomy

MAIN, OTHER = ("host", 1), ("host", 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aten::addmm", "arithmetic"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "arithmetic"),
        ("aten::mul_", "memory"),
        ("aten::copy_", "memory"),
        ("aten::linear", "host"),
        ("aten::transpose", "host"),
        ("AddmmBackward0", "host"),
        ("DistributedDataParallel.forward", "host"),
        ("c10d::allreduce_", "waiting"),
        ("ampere_bf16_s16816gemm_bf16_128x64", "arithmetic"),
        ("void at::native::vectorized_elementwise_kernel<4, ...>", "memory"),
        ("Memcpy DtoD (Device -> Device)", "memory"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "waiting"),
    ],
)
def test_operators_and_kernels_are_sorted_by_name(name: str, expected: str) -> None:
    assert kind(name) == expected


def test_an_operator_inside_another_has_its_own_time_and_gaps_are_the_hosts() -> None:
    events = [Event("aten::linear", 1, 5, MAIN), Event("aten::addmm", 2, 4, MAIN), Event("aten::add", 6, 7, MAIN)]
    assert anatomy(events, 0, 10) == Anatomy(arithmetic=2, memory=1, waiting=0, host=7)


def test_a_message_under_way_is_hidden_by_computation_and_waited_for_otherwise() -> None:
    events = [Event("gloo:all_reduce", 1, 8, None), Event("aten::mm", 2, 5, MAIN)]
    assert anatomy(events, 0, 10) == Anatomy(arithmetic=3, memory=0, waiting=4, host=3, hidden=3)


def test_threads_that_compute_at_once_count_once() -> None:
    events = [Event("aten::add", 0, 4, MAIN), Event("aten::mm", 2, 6, OTHER)]
    assert anatomy(events, 0, 6) == Anatomy(arithmetic=4, memory=2, waiting=0, host=0)


def test_events_outside_the_step_do_not_count_and_the_profilers_cost_is_taken_off_the_host() -> None:
    events = [Event("aten::mm", -5, 1, MAIN), Event("aten::add", 2, 3, MAIN), Event("aten::add", 20, 21, MAIN)]
    assert anatomy(events, 0, 10, cost=0.5) == Anatomy(arithmetic=1, memory=1, waiting=0, host=7)
    assert anatomy(events, 0, 10, cost=50).host == 0


@pytest.mark.parametrize("bound", ["arithmetic", "memory", "host"])
def test_a_step_of_known_bound_is_seen_to_have_it(bound: str) -> None:
    a, b = torch.randn(512, 512), torch.zeros(2**22)
    steps: dict[str, Callable[[int], object]] = {
        "arithmetic": lambda index: torch.mm(a, a),
        "memory": lambda index: b.clone(),
        "host": lambda index: time.sleep(0.02),
    }
    found = profiled(steps[bound], 3)
    best = min(found.anatomies, key=lambda each: each.seconds)
    assert getattr(best, bound) > best.seconds / 2
    assert len(found.seconds) == 3
    assert found.flops == {"arithmetic": 2 * 512**3, "memory": 0, "host": 0}[bound]


def test_an_event_costs_less_than_a_kernel() -> None:
    assert 0 <= event_cost() < 1e-3
