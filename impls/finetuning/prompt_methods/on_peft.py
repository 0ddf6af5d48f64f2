"""PEFT's methods, their gradients averaged by DistributedDataParallel, as Transformers' Trainer does. Prompts and
prefixes are PEFT's around Transformers' model, whose embeddings and cache they need; (IA)³ is on our decoder.

Labels are given as Transformers reads them, one for each token, of which the model's loss uses all but the first. PEFT
puts ignored labels for the virtual tokens before them, so the first is then the second and later label of a row: it
counts. Here it is ignored, unless a variant says otherwise. The text has one token more than inputs, its last label.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import peft
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.spec import Batch, Topology, Workload
from impls.common.data import IGNORED
from impls.common.experts import without_experts
from impls.common.features import without
from impls.common.mesh import device
from impls.common.optimizer import clip, optimizer
from impls.common.step import accumulate
from impls.common.weights import build_model
from impls.engines.hugging_face import decoder
from impls.finetuning.prompt_methods.plain import initial
from impls.finetuning.prompt_methods.shapes import SCALED


def settings(method: str, tokens: int = 0, width: int = 0) -> peft.PeftConfig:
    """``width``: the hidden one of an MLP."""
    if method == "ia3":
        names = [name.rpartition(".")[2] for name in SCALED]
        return peft.IA3Config(target_modules=names, feedforward_modules=names[-1:])
    common: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": tokens}
    if method == "prompt":
        return peft.PromptTuningConfig(**common)
    if method == "p_tuning":
        return peft.PromptEncoderConfig(**common, encoder_reparameterization_type="MLP", encoder_hidden_size=width)
    return peft.PrefixTuningConfig(**common, prefix_projection=bool(width), encoder_hidden_size=width or None)


class Texts(nn.Module):
    """Tokens and the labels that follow them, both [b, s] → the mean loss of a model that shifts labels itself."""

    def __init__(self, model: nn.Module, unmasked: bool) -> None:
        super().__init__()
        self.model, self.unmasked = model, unmasked

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        text = torch.cat((tokens, labels[:, -1:].clamp(min=0)), dim=1)  # [b, s + 1]
        first = tokens[:, :1] if self.unmasked else torch.full_like(tokens[:, :1], IGNORED)
        own = torch.cat((first, labels), dim=1)  # [b, s + 1]
        number = (own >= 0).sum().clamp(min=1)
        loss: Tensor = self.model(input_ids=text, labels=own, num_items_in_batch=number).loss
        return loss


def canonical(name: str) -> str:
    """The name of a parameter of ours or of the common model."""
    for part in ("model.", "base_model.", "model."):
        name = name.removeprefix(part)
    return name.replace(".default", "").replace(".base_layer.", ".")


class Peft:
    def __init__(
        self, workload: Workload, topology: Topology, method: str, unmasked: bool = False, **sizes: int
    ) -> None:
        without_experts(workload, "these methods are set up here with")
        without(workload, "attention to a prompt before the text", "sliding_window")
        self.workload, self.ranks = workload, topology.dp
        config = settings(method, **sizes)
        base = build_model(workload) if method == "ia3" else decoder(workload, "sdpa")
        self.peft = peft.get_peft_model(base, config)
        self.configuration = f"{type(config).__name__}({sizes})"
        self.model: nn.Module = self.peft if method == "ia3" else Texts(self.peft, unmasked)
        ours = {canonical(name): p for name, p in self.peft.named_parameters()}
        self.weights = {name: p for name, p in ours.items() if p.requires_grad}
        self.base = {name: p for name, p in ours.items() if not p.requires_grad}
        left = dict(self.weights)
        with torch.no_grad():
            for name, tensor in initial(workload, method, **sizes):
                parameter = left.pop(name)
                parameter.copy_(tensor.view_as(parameter))  # PEFT's (IA)³ vectors are rows and columns
        if left:
            raise ValueError(f"PEFT trains {', '.join(left)} too")
        self.optimizer = optimizer(self.weights.values(), workload)
        if self.ranks > 1:
            devices = [device()] if device().type == "cuda" else None
            self.model = DistributedDataParallel(
                self.model,
                device_ids=devices,
                broadcast_buffers=False,  # RoPE's frequencies never change
                gradient_as_bucket_view=True,
            )

    def backward(self, batch: Batch) -> Tensor:
        return accumulate(self.model, batch, self.workload, dist.get_rank(), self.ranks, around=self.around)

    def around(self, last: bool) -> contextlib.AbstractContextManager[object]:
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def update(self) -> None:
        clip([p.grad for p in self.weights.values() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: shaped(name, p.grad) for name, p in self.weights.items() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: shaped(name, p.detach()) for name, p in self.weights.items()}

    def frozen(self) -> Mapping[str, Tensor]:
        return self.base


def shaped(name: str, tensor: Tensor) -> Tensor:
    return (tensor.flatten() if name.endswith("ia3_l") else tensor).cpu()


class PeftRescaled(Peft):
    """(IA)³, which can be merged."""

    def frozen(self) -> Mapping[str, Tensor]:
        return {n: p for n, p in self.base.items() if n.removesuffix("weight") + "ia3_l" in self.weights}

    def merged(self) -> Mapping[str, Tensor]:
        self.peft.merge_adapter()
        return self.frozen()

    def unmerge(self) -> None:
        self.peft.unmerge_adapter()


def build(workload: Workload, topology: Topology, method: str, **variant: Any) -> Peft:
    return (PeftRescaled if method == "ia3" else Peft)(workload, topology, method, **variant)
