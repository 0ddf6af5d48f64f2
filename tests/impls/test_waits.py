"""In a timed step of a reference, the host waits for the device only where the technique needs it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from harness.catalog import load, topics
from harness.launch.base import World
from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done, Failure, Job, Outcome, Unsupported, describe
from harness.plan import cases as plan
from harness.plan import depth
from harness.plan.cases import Request
from harness.spec import Case, Functions, MoeConfig, Topology, Trainers
from harness.spec.contract import COMMON, Contract
from harness.spec.named import load as named
from impls.common.clipping import clip_by_global_norm, global_norm
from impls.common.mesh import share, token_share
from impls.common.optimizer import MasterWeights, clip, square
from tests.impls.accelerator import HERE, Accelerator
from tests.impls.work import CLIPPED


def _weighed(contract: Contract) -> bool:
    return isinstance(contract, Functions) and contract.weighed


# The file of each wait that a topic's technique needs, with the reason.
NEEDED = {
    "expert_parallel": ("dispatch.py", "the number of rows for each rank shapes the all-to-all"),
    "flash_attention": ("flash_attention/tiles.py", "the ends of packed documents shape the tiles"),
    "flash_decoding": ("flash_decoding/reference.py", "lengths shape the splits, and a fallback is another product"),
    "grouped_gemm": ("grouped_gemm/problem.py", "the sizes of the groups shape the tiles"),
    "mixed_precision": ("mixed_precision/reference.py", "a step that overflows is skipped"),
    "preference": ("preference/reference.py", "the number of projected tokens shapes the logits"),
    "zero_offload": ("optimizer.py", "gradients are scaled and states stepped on the host"),
}
# On a CPU, other kernels replace missing ones.
KERNELS = {"context_parallel": "SDPA's flash kernels", "latent_attention": "SDPA with values narrower than keys"}
QUICK = ("data_parallel", "lora", "mixed_precision", "zero")  # the others take ten minutes
COMPILED = ("sft_packed_flex",)  # torch.compile cannot trace a kernel of simulated tensors
# Only tensors wait; a Flow has no step, and some Functions compute numbers alone.
TOPICS = {n: card for n, card in topics().items() if isinstance(card.contract, Trainers) or _weighed(card.contract)}
SECONDS = 300.0
JOBS = "tests.impls.steps"


def quick(topic: str) -> list[Case]:
    """The reference's variants, each once on the smallest useful number of ranks: a dense model, without rings where it
    has other topologies."""
    request = Request(topics=(topic,), engines=("reference",), ranks=4)
    every = plan.cases(request, plan.cards(request))
    trained = isinstance(TOPICS[topic].contract, Trainers)
    dense = [
        c for c in every if not (trained and isinstance(c.workload.model, MoeConfig)) and c.variant not in COMPILED
    ]
    return depth.once([c for c in dense if "cp" not in c.topology.used] or dense)


@pytest.fixture(scope="module")
def launcher() -> Iterator[LocalLauncher]:
    with LocalLauncher() as launcher:
        yield launcher


@pytest.fixture(scope="module")
def gpu() -> Iterator[Callable[[Job], Outcome]]:
    """Runs jobs on one rank over NCCL, the same rank until it fails: opening CUDA takes seconds."""
    with LocalLauncher(gpus=1) as launcher:
        worlds: list[World] = []

        def run(job: Job) -> Outcome:
            worlds.append(worlds.pop() if worlds else launcher.world(1, "reference", JOBS))
            (outcome,) = worlds[-1].run(job, SECONDS)
            if isinstance(outcome, Failure):
                worlds.pop().close()
            return outcome

        yield run
        for world in worlds:
            world.close()


@pytest.mark.parametrize(
    "topic",
    [
        pytest.param(topic, marks=[] if topic in QUICK else [pytest.mark.slow])
        for topic in sorted(set(TOPICS) - set(KERNELS))
    ],
)
def test_the_host_waits_only_where_the_technique_needs_it(topic: str, launcher: LocalLauncher) -> None:
    card, found = TOPICS[topic], {}
    problem, data = getattr(card.contract, "problem", ""), getattr(card.contract, "data", "")
    cases = quick(topic)
    for size in {case.topology.world_size for case in cases}:
        variants = {
            case.variant: (_clipped(case), case.topology, dict(card.variants[case.variant]))
            for case in cases
            if case.topology.world_size == size
        }
        work = {"build": card.engines["reference"].build, "problem": problem, "data": data, "variants": variants}
        found |= _first(launcher.world(size, "reference", JOBS), Job(f"{JOBS}:waits", work))
    took = {variant: waits for variant, waits in found.items() if isinstance(waits, list)}
    assert took, found
    file, _ = NEEDED.get(topic, ("", ""))
    assert not [wait for waits in took.values() for wait in waits if not file or f"{file}:" not in wait]
    assert not file or any(took.values()), f"{topic} needs no wait any more: take it out of NEEDED"


def _clipped(case: Case) -> Any:
    flushed = case.variant not in ("pipedream", "pipedream_2bw")  # these reject clipping
    return case.workload.with_(max_grad_norm=0.3 if flushed else 0.0)


def _first(world: World, job: Job) -> Any:
    """The first rank's result, if all ranks have one."""
    try:
        outcomes = world.run(job, SECONDS)
    finally:
        world.close()
    values = [outcome.value for outcome in outcomes if isinstance(outcome, Done)]
    assert len(values) == world.size, describe(outcomes)
    return values[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("topic", "variant"), [(t, v) for t, card in TOPICS.items() for v in card.variants])
def test_on_a_gpu_a_timed_step_does_not_synchronise(topic: str, variant: str, gpu: Callable[[Job], Outcome]) -> None:
    if topic in NEEDED:
        pytest.skip(f"it must: {NEEDED[topic][1]}")
    card = TOPICS[topic]
    problem = getattr(card.contract, "problem", "")
    kind = "function" if problem else "trainer"
    work = named("long" if problem else "tiny_adamw").with_(dtype="bf16", max_grad_norm=0.0 if problem else 0.3)
    if variant.startswith("pipedream"):
        work = work.with_(max_grad_norm=0.0)
    arguments = {
        "kind": kind,
        "build": card.engines["reference"].build,
        "variant": dict(card.variants[variant]),
        "workload": work,
        "topology": Topology(),
        **(
            {"problem": problem, "exact": (), "oracle": True}
            if problem
            else {"data": card.contract.data, "options": {}}
        ),
    }
    outcome = gpu(Job(f"{JOBS}:step_without_waiting", arguments))
    if isinstance(outcome, Unsupported):
        pytest.skip(outcome.reason)
    assert isinstance(outcome, Done), describe([outcome])


def test_gradients_on_the_host_and_on_the_device_are_scaled_by_one_norm() -> None:
    with Accelerator():
        there, here = torch.full((3,), 2.0, device=HERE), torch.full((2, 2), 3.0)
        assert square([there, here]).device == HERE
        assert float(square([there, here])) == 48.0
        clip([there, here], 1.0)
        assert (there.device, here.device) == (HERE, torch.device("cpu"))
        norm = 48**0.5 + 1e-6
        assert there.tolist() == pytest.approx([2 / norm] * 3)
        assert here.flatten().tolist() == pytest.approx([3 / norm] * 4)


def test_states_on_the_host_are_clipped_by_the_norm_of_all() -> None:
    with Accelerator():
        here = [torch.full((4,), 3.0), torch.full((2,), 1.0)]
        assert global_norm({(): here}).device == HERE
        clip_by_global_norm({(): here}, 1.0)
        assert float(torch.cat(here).norm()) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_the_optimizer_on_the_device_does_not_wait(dtype: torch.dtype) -> None:
    with Accelerator() as device:
        weights = [torch.nn.Parameter(torch.ones(5, dtype=dtype, device=HERE)) for _ in range(2)]
        states = MasterWeights(weights, CLIPPED)
        for _ in range(2):
            device.waits.clear()
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            clip([weight.grad for weight in weights], 0.1)
            states.step()
        assert device.waits == []


def test_a_share_is_counted_on_the_host_and_moved_without_waiting() -> None:
    work = CLIPPED.with_(batch_size=8, min_length=3)
    batch = load(f"{COMMON.data}:batch")(work, 0)
    with Accelerator() as device:
        parts = [part for rank in range(2) for part in share(batch, work, rank, 2)]
        assert device.waits == []
        assert all(tensor.device == HERE for micro, _ in parts for tensor in micro)
    rows = work.batch_size // len(parts)
    for index, (micro, part) in enumerate(parts):
        own = type(batch)(*(tensor[index * rows : (index + 1) * rows] for tensor in batch))
        assert torch.equal(micro.labels, own.labels)
        assert part == token_share(own, batch)
    assert sum(part for _, part in parts) == pytest.approx(1.0)


def test_the_stand_in_tells_a_wait_and_refuses_two_places() -> None:
    with Accelerator() as device:
        x, here = torch.ones(3, device=HERE), torch.ones(3)
        for wait in (float, torch.Tensor.tolist, lambda x: x[x > 0], lambda x: x.to("cpu"), lambda _: here.to(HERE)):
            device.waits.clear()
            wait(x.sum() if wait is float else x)
            assert device.waits
        with pytest.raises(RuntimeError, match="cuda and cpu"):
            x + here
        with pytest.raises(RuntimeError, match="cuda and cpu"):
            torch._foreach_mul_([here], x.sum())
