"""PEFT's methods, their gradients averaged by DistributedDataParallel, as Transformers' Trainer does. Prompts and
prefixes are PEFT's around Transformers' model, whose embeddings and cache they need; (IA)³ is on our decoder.

Labels are given as Transformers reads them, one for each token, of which the model's loss uses all but the first. PEFT
puts ignored labels for the virtual tokens before them, so the first is then the second and later label of a row: it
counts. Here it is ignored, unless a variant says otherwise. The text has one token more than inputs, its last label.
"""

from collections.abc import Mapping
from typing import Any

import peft
import torch
from torch import Tensor, nn

from harness.spec import Topology, Workload
from impls.common.data import IGNORED
from impls.common.experts import without_experts
from impls.common.features import without
from impls.common.weights import build_model
from impls.engines.adapted import DataParallel, fill
from impls.engines.hugging_face import decoder
from impls.engines.peft import Mergeable
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


class Peft(DataParallel):
    def __init__(
        self, workload: Workload, topology: Topology, method: str, unmasked: bool = False, **sizes: int
    ) -> None:
        without_experts(workload, "these methods are set up here with")
        without(workload, "attention to a prompt before the text", "sliding_window")
        config = settings(method, **sizes)
        base = build_model(workload) if method == "ia3" else decoder(workload, "sdpa")
        adapted = peft.get_peft_model(base, config)
        model = adapted if method == "ia3" else Texts(adapted, unmasked)
        ours = {canonical(name): p for name, p in adapted.named_parameters()}
        weights = {name: p for name, p in ours.items() if p.requires_grad}
        fill(weights, initial(workload, method, **sizes))
        frozen = {name: p for name, p in ours.items() if not p.requires_grad}
        self.peft_model = adapted
        super().__init__(workload, topology, model, weights, frozen, f"{type(config).__name__}({sizes})")


class PeftRescaled(Peft, Mergeable):
    """(IA)³, which can be merged, and whose vectors are rows and columns in PEFT."""

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: tensor.flatten() for name, tensor in super().gradients().items()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: tensor.flatten() for name, tensor in super().parameters().items()}

    def frozen(self) -> Mapping[str, Tensor]:
        return {n: p for n, p in self.base.items() if n.removesuffix("weight") + "ia3_l" in self.weights}


def build(workload: Workload, topology: Topology, method: str, **variant: Any) -> Peft:
    return (PeftRescaled if method == "ia3" else Peft)(workload, topology, method, **variant)
