"""AdaLoRA's trained parameters, by PEFT's names: Q [r, in], Λ [r, 1], P [out, r]."""

from collections.abc import Iterator

from torch import Tensor

from harness.spec import ModelConfig, Workload
from impls.common.weights import weight
from impls.finetuning.lora.shapes import targets

P, VALUES, Q = "lora_B", "lora_E", "lora_A"


def initial(workload: Workload, rank: int, **options: object) -> Iterator[tuple[str, Tensor]]:
    """Float32; vectors of about unit length. Λ is drawn: with the paper's zeros P and Q would have no gradient."""
    for module, (rows, columns) in targets(workload.model):
        yield f"{module}.{Q}", weight(workload, f"{module}.{Q}", (rank, columns))
        yield f"{module}.{VALUES}", weight(workload, f"{module}.{VALUES}", (rank, 1)) / 4
        yield f"{module}.{P}", weight(workload, f"{module}.{P}", (rank, rows)).T.contiguous()


def number(model: ModelConfig) -> int:
    """n, the number of adapted matrices."""
    return sum(1 for _ in targets(model))
