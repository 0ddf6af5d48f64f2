"""PEFT's adapters under PyTorch's FSDP2, which divides the frozen weights too."""

from harness.spec import Topology, Workload
from impls.common.experts import without_experts
from impls.common.weights import build_model
from impls.engines.peft import FullyShard, lora
from impls.finetuning.lora.plain import initial
from impls.finetuning.lora.settings import settings


def build(workload: Workload, topology: Topology, **variant: float) -> FullyShard:
    without_experts(workload, "adapters are set up here with")
    model = lora(build_model(workload), settings(**variant), initial(workload, **variant))
    return FullyShard(workload, topology, model, f"LoraConfig({settings(**variant)})")
