"""The GPUs are those that PyTorch sees; one line gives the reason if expected GPUs are missing."""

import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.spec import gpus
from harness.spec.gpus import Gpu, visible

TORCH = importlib.metadata.version("torch")
LISTS_TWO = "echo 580.65.06; echo 580.65.06"
Put = Callable[[str], None]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """Puts a substitute for nvidia-smi first on the search path."""

    def put(body: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    gpus.found.cache_clear()
    yield put
    gpus.found.cache_clear()


@pytest.fixture
def torch_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A PyTorch that sees these GPUs."""

    def see(*names: str) -> None:
        found = json.dumps({"torch": "2.13.0", "gpus": [[name, "9.0"] for name in names]})
        monkeypatch.setattr(gpus, "ASK", f"print({found!r})")

    return see


def test_gpus_that_only_nvidia_smi_sees_are_not_used_and_that_is_said(
    nvidia_smi: Put, torch_sees: Callable[..., None]
) -> None:
    nvidia_smi(LISTS_TWO)
    torch_sees()
    assert gpus.gpus() == ()
    assert gpus.found().note == "nvidia-smi lists 2 GPUs, but PyTorch 2.13.0 sees none: CPU ranks"


def test_a_torch_that_shows_fewer_is_believed(nvidia_smi: Put, torch_sees: Callable[..., None]) -> None:
    nvidia_smi(LISTS_TWO)
    torch_sees("NVIDIA H100")
    assert gpus.found() == gpus.Found((Gpu("NVIDIA H100", "9.0"),), "580.65.06", "")


def test_gpus_that_the_environment_hides_are_hidden(nvidia_smi: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries the installed PyTorch, whatever this machine has."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    nvidia_smi(LISTS_TWO)
    assert gpus.gpus() == ()
    assert gpus.found().note.endswith("sees none with CUDA_VISIBLE_DEVICES='': CPU ranks")
    assert f"PyTorch {TORCH}" in gpus.found().note or f"PyTorch {TORCH}+" in gpus.found().note


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sleep 600", "nvidia-smi gave no answer in 1 s, but PyTorch 2.13.0 sees none: CPU ranks"),
        ("echo 'No devices were found'; exit 6", "nvidia-smi failed: No devices were found, but PyTorch 2.13.0"),
        ("exit 0", "nvidia-smi lists 0 GPUs, but PyTorch 2.13.0 sees none: CPU ranks"),
    ],
)
def test_an_nvidia_smi_that_hangs_or_fails_is_one_line(
    body: str, said: str, nvidia_smi: Put, torch_sees: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpus.PATIENCE, "nvidia-smi", 1.0)
    nvidia_smi(body)
    torch_sees()
    assert gpus.found().note.startswith(said)
    torch_sees("NVIDIA H100")
    gpus.found.cache_clear()
    assert gpus.found() == gpus.Found((Gpu("NVIDIA H100", "9.0"),))


@pytest.mark.parametrize(
    ("code", "said"),
    [("import time; time.sleep(600)", "gave no answer in 1 s"), ("1 / 0", "failed: ZeroDivisionError")],
)
def test_a_torch_that_hangs_or_fails_is_one_line(
    code: str, said: str, nvidia_smi: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpus.PATIENCE, "PyTorch", 1.0)
    monkeypatch.setattr(gpus, "ASK", code)
    nvidia_smi(LISTS_TWO)
    assert gpus.gpus() == ()
    assert gpus.found().note.startswith("PyTorch cannot list the GPUs (python")
    assert said in gpus.found().note
    assert "\n" not in gpus.found().note


def test_without_a_sign_of_a_gpu_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus.found.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "nvidiactl")
    monkeypatch.setattr(gpus, "answer", lambda *_: pytest.fail("a program was started"))
    assert gpus.found() == gpus.Found()
    gpus.found.cache_clear()


def test_asking_loads_no_torch_here(nvidia_smi: Put) -> None:
    code = "from harness.spec import gpus; gpus.found(); import sys; print('torch' in sys.modules)"
    nvidia_smi(LISTS_TWO)
    assert gpus.answer((sys.executable, "-c", code), 120.0) == "False"


@pytest.mark.parametrize(
    ("count", "shown", "visible_then"),
    [(0, None, ""), (2, None, "0,1"), (2, "3,5,7", "3,5"), (1, "GPU-8f1c,GPU-77aa", "GPU-8f1c"), (0, "3", "")],
)
def test_ranks_see_the_first_of_those_that_the_session_sees(count: int, shown: str | None, visible_then: str) -> None:
    assert visible(count, {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}) == visible_then
