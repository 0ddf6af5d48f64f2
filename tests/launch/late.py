"""Engines, and a problem for them, whose backend holds a buffer for a moment after each call, like gloo's threads."""

import threading
import time
from typing import Any

import torch
from torch import Tensor

HELD = 2**22  # bytes of the buffer
MOMENT = 0.005  # seconds


def hold() -> None:
    buffer = torch.empty(HELD, dtype=torch.uint8)
    threading.Thread(target=lambda _: time.sleep(MOMENT), args=(buffer,)).start()


def draw(workload: Any) -> dict[str, Tensor]:
    return {"x": torch.ones(8, requires_grad=True)}


def plain(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"y": inputs["x"].exp()}


def function(workload: Any, topology: Any) -> Any:
    def call(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        hold()
        return plain(inputs)

    return call


class Trainer:
    def __init__(self) -> None:
        self.weight = torch.ones(8)

    def backward(self, batch: Any) -> Tensor:
        hold()
        return self.weight.sum()

    def update(self) -> None:
        hold()

    def gradients(self) -> dict[str, Tensor]:
        return {}

    def parameters(self) -> dict[str, Tensor]:
        return {}


def trainer(workload: Any, topology: Any) -> Trainer:
    return Trainer()


def batch(workload: Any, step: int) -> None:
    return None
