"""PEFT's adapters under DeepSpeed's ZeRO-3, which divides the frozen weights too."""

from collections.abc import Mapping

from torch import Tensor

from harness.spec import Topology, Workload
from impls.common.experts import without_experts
from impls.common.weights import build_model
from impls.engines.deepspeed.engine import Engine, deepspeed
from impls.engines.deepspeed.zero import section
from impls.engines.peft import base, canonical, lora
from impls.finetuning.lora.plain import initial
from impls.finetuning.lora.settings import settings


class PeftZero3(Engine):
    def __init__(self, workload: Workload, topology: Topology, **variant: float) -> None:
        without_experts(workload, "adapters are set up here with")
        self.peft = lora(build_model(workload), settings(**variant), initial(workload, **variant))
        super().__init__(workload, topology, section(workload, 3), model=self.peft)
        self.names = {canonical(name): parameter for name, parameter in self.names.items()}
        self.configuration += f"; LoraConfig({settings(**variant)})"

    def frozen(self) -> Mapping[str, Tensor]:
        found = base(self.peft)
        with deepspeed.zero.GatheredParameters(list(found.values())):
            return {name: parameter.detach().cpu().clone() for name, parameter in found.items()}


def build(workload: Workload, topology: Topology, **variant: float) -> PeftZero3:
    return PeftZero3(workload, topology, **variant)
