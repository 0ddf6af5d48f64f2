"""AdapterHub's bottleneck adapters on Transformers' model, through the interface for models that it does not know.

It requires Transformers 4.57, and so an environment of its own. Adapters stand behind o_proj and down_proj, which are
the ends of attention and MLP; DistributedDataParallel averages their gradients.
"""

from typing import Any

import adapters
from adapters import AdapterModelInterface, BnConfig

from harness.spec import Topology, Unsupported, Workload
from impls.common.weights import TORCH_DTYPES
from impls.engines.adapted import DataParallel, Loss, fill
from impls.engines.hugging_face import decoder
from impls.finetuning.prompt_methods.plain import initial

NAME = "houlsby"
INTERFACE = AdapterModelInterface(
    adapter_methods=["bottleneck"],
    model_embeddings="embed_tokens",
    model_layers="layers",
    layer_self_attn="self_attn",
    layer_cross_attn=None,
    attn_q_proj="q_proj",
    attn_k_proj="k_proj",
    attn_v_proj="v_proj",
    attn_o_proj="o_proj",
    layer_intermediate_proj="mlp.up_proj",
    layer_output_proj="mlp.down_proj",
)
OURS = {
    f".attention_adapters.adapters.{NAME}.": ".self_attn.adapter.",
    f".output_adapters.adapters.{NAME}.": ".mlp.adapter.",
    ".adapter_down.0.": ".down.",
    ".adapter_up.": ".up.",
}


def canonical(name: str) -> str:
    for theirs, own in OURS.items():
        name = name.replace(theirs, own)
    return name


class Adapters(DataParallel):
    def __init__(self, workload: Workload, topology: Topology, method: str, m: int) -> None:
        if workload.dtype not in ("fp32", "fp64"):
            raise Unsupported("adapters have the model's precision, without float32 weights to step")
        model = decoder(workload, "sdpa")
        adapters.init(model, interface=INTERFACE)
        settings: dict[str, Any] = {
            "mh_adapter": True,
            "output_adapter": True,
            "reduction_factor": workload.model.hidden_size / m,
            "non_linearity": "gelu",
        }
        model.add_adapter(NAME, config=BnConfig(**settings))
        model.train_adapter(NAME)
        model.to(dtype=TORCH_DTYPES[workload.dtype])
        named = {canonical(name): p for name, p in model.named_parameters()}
        weights = {name: p for name, p in named.items() if p.requires_grad}
        fill(weights, initial(workload, method, m=m))
        frozen = {name: p for name, p in named.items() if not p.requires_grad}
        super().__init__(workload, topology, Loss(model), weights, frozen, f"BnConfig({settings})")


def build(workload: Workload, topology: Topology, **variant: Any) -> Adapters:
    return Adapters(workload, topology, **variant)
