"""Colossal-AI in a rank without a GPU: an accelerator on the CPU, whose streams do nothing."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from colossalai.accelerator import get_accelerator, set_accelerator
from colossalai.accelerator.cpu_accelerator import CpuAccelerator


class Host(CpuAccelerator):
    """Colossal-AI's own CPU accelerator has no streams and no GPU random states, and its optimizers reject devices not
    called CUDA. This class changes no arithmetic, no collective and no shape."""

    name = "cuda"

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def synchronize(self, device: Any = None) -> None: ...

    def Stream(self, *_: Any, **__: Any) -> torch.cpu.Stream:  # noqa: N802
        return torch.cpu.Stream()

    def current_stream(self, device: Any = None) -> torch.cpu.Stream:
        return torch.cpu.current_stream()

    def stream(self, stream_: torch.cpu.Stream) -> AbstractContextManager[Any]:
        return torch.cpu.stream(stream_)


def start() -> None:
    """Must be called in every rank before any of its optimizers is created."""
    if get_accelerator().name == "cpu":
        # exists in Huawei's PyTorch; requested if there is no NCCL
        vars(torch.distributed)["is_hccl_available"] = lambda: False
        torch.Tensor.record_stream = lambda self, stream: None
        set_accelerator(Host())
