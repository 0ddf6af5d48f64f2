"""PEFT's LoraConfig on the embedding and the head of Transformers' model; tied weights have ``ensure_weight_tying``.

PEFT makes two parameters of the one adapter of tied weights, the embedding's and its transpose in the head. As long as
they share their memory, the gradient of what is stored there is the sum of theirs; the optimizer gets both, as from any
trainer that takes what requires a gradient."""

from collections.abc import Mapping

import peft
from torch import Tensor

from harness.spec import Topology, Workload
from impls.common.optimizer import optimizer
from impls.engines.adapted import Loss, fill
from impls.engines.hugging_face import decoder
from impls.engines.peft import Mergeable, base, trained
from impls.finetuning.lora_head import shapes
from impls.finetuning.lora_head.shapes import EMBEDDING_A, EMBEDDING_B, HEAD_A, HEAD_B

MODULES: Mapping[str, str] = {"embedding": "embed_tokens", "head": "lm_head", "tied": "embed_tokens"}
TWINS: Mapping[str, str] = {EMBEDDING_A: HEAD_B, EMBEDDING_B: HEAD_A}  # of tied weights, each the other's transpose


class Peft(Mergeable):
    def __init__(self, workload: Workload, topology: Topology, rank: int, alpha: float, ends: tuple[str, ...]) -> None:
        shapes.check(workload.model, ends)
        settings = {
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": [MODULES[end] for end in ends],
            "ensure_weight_tying": "tied" in ends,
            "task_type": "CAUSAL_LM",
        }
        self.peft_model = model = peft.get_peft_model(decoder(workload, "sdpa"), peft.LoraConfig(**settings))
        weights, start = trained(model), dict(shapes.initial(workload, rank, ends))
        self.names, told = list(start), f"LoraConfig({settings})"
        self.twins = {name: weights[twin] for name, twin in TWINS.items()} if "tied" in ends else {}
        start |= {TWINS[name]: start[name].T for name in self.twins}
        fill(weights, start.items())
        stepper = optimizer(weights.values(), workload)
        super().__init__(workload, topology, Loss(model), weights, base(model), told, stepper)

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: self.gradient(name) for name in self.names}

    def gradient(self, name: str) -> Tensor:
        """Of the memory of a parameter."""
        own, twin = self.weights[name], self.twins.get(name)
        assert own.grad is not None
        if twin is None or twin.data_ptr() != own.data_ptr():
            return own.grad.cpu()
        assert twin.grad is not None
        return (own.grad + twin.grad.T).cpu()

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: self.weights[name].detach().cpu() for name in self.names}


def build(workload: Workload, topology: Topology, rank: int, alpha: float, ends: tuple[str, ...]) -> Peft:
    return Peft(workload, topology, rank, alpha, ends)
