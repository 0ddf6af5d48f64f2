"""PEFT's LoraModel with two adapters of one layer: both active, ``add_weighted_adapter``, ``merge_adapter``."""

from collections.abc import Mapping, Sequence

import peft
import torch
from torch import Tensor, nn
from torch.func import functional_call

from harness.spec import Function, Topology, Workload

LAYER = "base_model.model.0"
NAMES = ("first", "second")


def build(
    workload: Workload, topology: Topology, rank: int, alphas: Sequence[float], weights: Sequence[float], kind: str
) -> Function:
    configs = [peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"]) for alpha in alphas]

    def layer(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, W = inputs["x"], inputs["W"]  # [b, k], [d, k]  # noqa: N806
        base = nn.Linear(W.shape[1], W.shape[0], bias=False, device=W.device, dtype=W.dtype)
        model = peft.get_peft_model(nn.Sequential(base), configs[0], adapter_name=NAMES[0])
        model.add_adapter(NAMES[1], configs[1])
        wide = torch.promote_types(W.dtype, torch.float32)
        given = {f"{LAYER}.base_layer.weight": W}
        for i, name in enumerate(NAMES, 1):
            given |= {f"{LAYER}.lora_{side}.{name}.weight": inputs[f"{side}{i}"].to(wide) for side in "AB"}
        model.base_model.set_adapter(list(NAMES))
        both = functional_call(model, given, (x,))
        model.load_state_dict({name: tensor.detach() for name, tensor in given.items()})
        with torch.no_grad():
            model.merge_adapter(list(NAMES))
            adapted = model.base_model.model[0]
            merged = adapted.base_layer.weight.clone()
            model.unmerge_adapter()
            unmerged = adapted.base_layer.weight.clone()
            model.load_state_dict({f"{LAYER}.base_layer.weight": W}, strict=False)
            more = {"svd_rank": len(NAMES) * rank, "svd_full_matrices": False} if kind == "svd" else {}
            model.add_weighted_adapter(list(NAMES), list(weights), "sum", combination_type=kind, **more)
            model.set_adapter("sum")
            combined, delta = model(x), adapted.get_delta_weight("sum")
        return {"both": both, "delta": delta, "combined": combined, "merged": merged, "unmerged": unmerged}

    return layer
