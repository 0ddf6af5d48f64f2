"""Five ways to adapt a frozen model by few parameters, other than by low-rank matrices.

    bottleneck   adapters, two small MLPs in each layer       Houlsby et al. 2019     inserted.py
    ia3          three vectors that rescale activations       Liu et al. 2022         inserted.py
    prompt       rows before the embeddings                   Lester et al. 2021      prompts.py
    p_tuning     these rows are an MLP's outputs              Liu et al. 2021         prompts.py
    prefix       keys and values before those of each layer   Li & Liang 2021         prompts.py

Here is how they are trained, which is the same for all: only the new parameters have gradients and optimizer states.
They are float32 whatever the base's precision, and ranks that share a batch send their gradients alone.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Batch, Topology, Workload
from impls.common.experts import without_experts
from impls.common.features import without
from impls.common.mesh import device
from impls.common.optimizer import optimizer
from impls.common.step import accumulate
from impls.common.sums import sum_flat
from impls.common.trained import Trained
from impls.common.weights import build_model
from impls.finetuning.prompt_methods import inserted, prompts
from impls.finetuning.prompt_methods.plain import initial


def adapt(workload: Workload, method: str, m: int, tokens: int, width: int) -> nn.Module:
    """The frozen decoder with the method's modules: tokens and labels [b, s] → loss."""
    config, base = workload.model, build_model(workload).requires_grad_(False)
    cached = config.num_key_value_heads * config.head_dim  # k·d
    layers = config.num_hidden_layers
    model: nn.Module = base
    if method == "bottleneck":
        inserted.insert_adapters(base, m)
    elif method == "ia3":
        inserted.insert_scales(base)
    elif method == "prompt":
        model = prompts.SoftPrompt(base, prompts.PromptEncoder(tokens, config.hidden_size))
    elif method == "p_tuning":
        model = prompts.SoftPrompt(base, prompts.PTuningEncoder(tokens, config.hidden_size, width))
    elif width:
        model = prompts.Prefix(base, prompts.PrefixEncoder(tokens, cached, width, layers))
    else:
        model = prompts.Prefix(base, prompts.PromptEncoder(tokens, layers * 2 * cached))
    return model.to(device())


class Adapted(Trained):
    def __init__(
        self, workload: Workload, topology: Topology, method: str, m: int = 0, tokens: int = 0, width: int = 0
    ) -> None:
        without_experts(workload, "these methods are set up here with")
        without(workload, "attention to a prompt before the text", "sliding_window")
        self.workload, self.ranks = workload, topology.dp
        self.model = adapt(workload, method, m, tokens, width)
        self.weights = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, tensor in initial(workload, method, m=m, tokens=tokens, width=width):
                self.weights[name].copy_(tensor)
        self.optimizer = optimizer(self.weights.values(), workload)

    def backward(self, batch: Batch) -> Tensor:
        # 1. This rank's share of the batch: no gradient of a frozen weight is computed.
        loss = accumulate(self.model, batch, self.workload, dist.get_rank(), self.ranks, scale=1 / self.ranks)
        # 2. One message of all new parameters.
        sum_flat([p.grad for p in self.weights.values() if p.grad is not None], dist.group.WORLD)
        return loss

    def frozen(self) -> Mapping[str, Tensor]:
        """The whole base."""
        frozen = ((name, p) for name, p in self.model.named_parameters() if not p.requires_grad)
        return {name.removeprefix("base.").replace(".base.", "."): p for name, p in frozen}


class Rescaled(Adapted):
    """(IA)³, whose vectors can be folded into the matrices beside them."""

    def frozen(self) -> Mapping[str, Tensor]:
        return {f"{name}.weight": layer.base.weight for name, layer in inserted.scaled(self.model)}

    def merged(self) -> Mapping[str, Tensor]:
        inserted.merge(self.model)
        return self.frozen()

    def unmerge(self) -> None:
        inserted.unmerge(self.model)


def build(workload: Workload, topology: Topology, method: str, unmasked: bool = False, **sizes: int) -> Adapted:
    """``unmasked`` is about the labels that PEFT is given."""
    return (Rescaled if method == "ia3" else Adapted)(workload, topology, method, **sizes)
