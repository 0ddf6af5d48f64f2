"""The four-bit base divided over N ranks (FSDP-QLoRA; Answer.AI 2024, "You can now train a 70b language model at
home"): each holds 1/N of a layer's codes and scales as bytes, and a layer is gathered when it is used, forward and
backward, still packed; then a matrix at a time is dequantised.

    layer       codes and scales of its matrices      padded to a multiple of N bytes
    rank 0      ████░░░░░░░░                          gather ─▶  ████████████  ─▶ dequantise W_q, W_k, … in turn
    rank 1      ░░░░████░░░░

A gathered layer is dropped as soon as its forward pass ends or another one is gathered. It travels in four bits: less
than a third of what a bfloat16 base would send.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from impls.finetuning.qlora.storage import Format, Packed


class Piece:
    """A matrix in a layer's bytes."""

    def __init__(self, shard: "Shard", layer: str, packed: Packed, shape: tuple[int, int]) -> None:
        self.shard, self.layer, self.shape = shard, layer, shape
        self.like = Packed(*(tensor.to("meta") for tensor in packed))
        self.start = 0  # where it starts in the layer

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        place, found = self.start, []
        whole = self.shard.gather(self.layer)
        for like in self.like:
            part = whole[place : place + like.nbytes]
            found.append(part.clone().view(like.dtype))  # a float must start at a multiple of 4 bytes
            place += like.nbytes
        return self.shard.format.unpack(Packed(*found), self.shape, dtype)


class Shard:
    def __init__(self, format: Format, group: dist.ProcessGroup) -> None:
        self.format, self.group = format, group
        self.layers: dict[str, list[Tensor]] = {}  # bytes, until they are divided
        self.mine: dict[str, Tensor] = {}  # this rank's part of each layer
        self.gathered: tuple[str, Tensor] | None = None  # the layer in use, whole

    def add(self, name: str, packed: Packed, shape: tuple[int, int]) -> Piece:
        layer = ".".join(name.split(".")[:3])  # model.layers.0
        held = self.layers.setdefault(layer, [])
        piece = Piece(self, layer, packed, shape)
        piece.start = sum(map(len, held))
        held += [tensor.view(torch.uint8) for tensor in packed]
        return piece

    def divide(self, model: nn.Module) -> None:
        """Keeps this rank's part of each layer, ⌈bytes/N⌉."""
        for layer, tensors in self.layers.items():
            whole = torch.cat(tensors)  # [bytes]
            whole = torch.nn.functional.pad(whole, (0, -len(whole) % self.group.size()))
            self.mine[layer] = whole.chunk(self.group.size())[self.group.rank()].clone()
            model.get_submodule(layer).register_forward_hook(lambda *_: self.drop())
        self.layers.clear()

    def gather(self, layer: str) -> Tensor:
        """A layer's bytes."""
        if self.gathered is None or self.gathered[0] != layer:
            self.drop()
            mine = self.mine[layer]  # [bytes/N]
            whole = mine.new_empty(len(mine) * self.group.size())
            dist.all_gather_into_tensor(whole, mine, group=self.group)
            self.gathered = layer, whole
        return self.gathered[1]

    def drop(self) -> None:
        self.gathered = None

    def parts(self) -> Mapping[str, Tensor]:
        return self.mine
