"""The parts of the noise floor: the ensemble, another machine, and other draws of the model."""

from collections.abc import Iterator, Mapping
from threading import Thread
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from harness import catalog
from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done, Job, Raised
from harness.run import heap
from harness.run.oracle import ELSEWHERE, ENSEMBLE, HERE, KEPT, NoOracle, Oracles, Run
from harness.spec import Case, Measurement, Topology, Workload

TRUTH = {"a": torch.tensor([3.0, 4.0], dtype=torch.float64), "b": torch.full((64,), 2.0, dtype=torch.float64)}


def run(scale: float = 1.0, off: float = 0.0) -> Run:
    """A run whose tensors are ``scale`` × the truth, ``a`` rotated by ``off`` of its size, and its losses likewise."""
    turned: dict[str, Tensor] = {name: scale * tensor for name, tensor in TRUTH.items()}
    turned["a"] = turned["a"] + off * torch.tensor([-4.0, 3.0])
    return Run({"gradient": turned}, [scale, 2.0 * scale])


class Planted:
    """Results of the ensemble, another machine and other draws, by their settings and seed."""

    def __init__(self, here: Run, moved: Run, draw: Run, elsewhere: float = 1.0) -> None:
        self.here, self.moved, self.draw, self.elsewhere = here, moved, draw, elsewhere

    def __call__(self, work: Workload, ensemble: Any, settings: Mapping[str, str] = HERE) -> list[Run]:
        found = self.draw if work.seed else self.moved if settings else self.here
        return [run(self.elsewhere if settings else 1.0), found]


def reference(device: str, **runs: Any) -> Any:
    launcher: Any = SimpleNamespace(device=device)
    planted = Planted(**{"here": run(), "moved": run(), "draw": run(), **runs})
    return Oracles(launcher, 1.0)._judged_by(planted, Workload(), ENSEMBLE)


def test_another_machines_rounding_is_in_the_floor() -> None:
    floor = reference("cpu", moved=run(off=0.01), here=run(off=0.001)).floors["gradient"]
    assert floor.tensors["a"] == pytest.approx(0.01)
    assert reference("cpu", here=run(off=0.02)).floors["gradient"].tensors["a"] == pytest.approx(0.02)


def test_another_machine_whose_weights_are_others_has_its_own_oracle() -> None:
    floor = reference("cpu", elsewhere=1.01, moved=run(scale=1.01)).floors["gradient"]
    assert max(floor.tensors.values()) == 0.0
    assert floor.slope == 0.0


def test_on_gpus_there_is_no_other_machine() -> None:
    floor = reference("cuda", moved=run(off=0.01), here=run(off=0.001)).floors["gradient"]
    assert floor.tensors["a"] == pytest.approx(0.001)


def test_other_draws_raise_slopes_and_losses_and_no_norm() -> None:
    found = reference("cpu", draw=run(scale=1.01))
    assert found.floors["gradient"].slope == pytest.approx(0.01)
    assert found.floors["gradient"].tensors["a"] == 0.0
    assert found.loss_floor == pytest.approx([0.01, 0.01])


class Broken:
    device = "cpu"

    def world(self, *_: Any) -> Any:
        return SimpleNamespace(run=lambda *_: (Raised(0, 0.0, "no memory"),), close=lambda: None)


def test_a_plain_model_that_does_not_run_is_a_measurement_that_says_so() -> None:
    broken: Any = Broken()
    with pytest.raises(NoOracle, match="the oracle did not run: no memory"):
        Oracles(broken, 1.0)._plain("plain", "members", {})
    assert isinstance(NoOracle(Measurement("parity", "run", None, "", "error", "why")).measurement, Measurement)


@pytest.fixture(scope="module")
def launcher() -> Iterator[LocalLauncher]:
    with LocalLauncher() as launcher:
        yield launcher


def kernels(context: Any) -> tuple[str, int]:
    return torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()


def test_a_world_may_have_the_instructions_and_threads_of_another_machine(launcher: LocalLauncher) -> None:
    found = []
    for settings in (HERE, ELSEWHERE, HERE):
        world = launcher.world(1, "plain", __name__, settings)
        (done,) = world.run(Job(f"{__name__}:kernels", {}), 60.0)
        world.close()
        assert isinstance(done, Done), done
        found.append(done.value)
    assert found[0] == found[2] == (torch.backends.cpu.get_cpu_capability(), 1)
    assert found[1] == ("DEFAULT", 2)


def test_only_the_latest_references_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    oracles = Oracles(SimpleNamespace(device="cpu"), 1.0)  # type: ignore[arg-type]
    monkeypatch.setattr(oracles, "_judged_by", lambda run, work, ensemble: made.append(work.name) or work.name)
    card, names = catalog.topics()["data_parallel"], [str(index) for index in range(KEPT + 1)]

    def asked(name: str) -> object:
        return oracles.reference(Case(card.name, "ddp", "reference", Topology(), Workload(name)), card)

    assert [asked(name) for name in names[:KEPT]] == names[:KEPT]
    asked("0")  # so that 1 is now the one that was used longest ago
    asked(names[KEPT])
    assert made == names
    asked("0")
    assert made == names
    asked("1")
    assert made == [*names, "1"]


def test_freed_memory_is_returned_to_the_system() -> None:
    """Small pieces that a thread has allocated; a last one, which is kept, holds glibc's arena open."""
    own, kept = psutil.Process(), list[Any]()

    def allocate() -> None:
        pieces = [torch.zeros(1000) for _ in range(50_000)]  # 200 MB
        kept.append(pieces[-1])

    thread = Thread(target=allocate)
    thread.start()
    thread.join()
    before = own.memory_info().rss
    heap.release()
    assert before - own.memory_info().rss > 100e6
