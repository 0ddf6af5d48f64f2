"""PEFT's adapters on Transformers' Qwen3, in the loop of Transformers' Trainer; for QLoRA on bitsandbytes' four-bit
matrices, as ``load_in_4bit`` makes them."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, Trainer, TrainingArguments

from harness.spec import Curves, Topology, Unsupported, Workload
from impls.common.weights import TORCH_DTYPES
from impls.engines.hugging_face_loop import Watch, arguments, curves, loaded, quiet
from impls.engines.peft import lora
from impls.finetuning.finetuning_curves import task
from impls.finetuning.lora.plain import initial
from impls.finetuning.lora.settings import settings
from impls.finetuning.prompt_methods.shapes import SCALED


def start(workload: Workload, rank: int) -> Iterator[tuple[str, Tensor]]:
    """The reference's A, and B as PEFT has it: zero."""
    for name, tensor in initial(workload, rank):
        yield name, torch.zeros_like(tensor) if name.endswith("lora_B.weight") else tensor


def adapted(
    workload: Workload, method: str, rank: int = 0, alpha: float = 0.0, normal: bool = True, double: bool = False
) -> nn.Module:
    if method == "ia3":
        names = [name.rpartition(".")[2] for name in SCALED]
        return peft.get_peft_model(
            loaded(workload), peft.IA3Config(target_modules=names, feedforward_modules=names[-1:])
        )
    fields: dict[str, Any] = {}
    if method == "qlora":
        if workload.dtype == "fp64":
            raise Unsupported("bitsandbytes stores float32, float16 and bfloat16")
        fields["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4" if normal else "fp4",
            bnb_4bit_use_double_quant=double,
            bnb_4bit_compute_dtype=TORCH_DTYPES[workload.dtype],
        )
    return lora(loaded(workload, **fields), settings(rank, alpha), start(workload, rank))


def run(workload: Workload, topology: Topology, seed: int, budget: int, lr: float, rule: str, **variant: Any) -> Curves:
    with task.pretrained(workload, seed, lr) as work, quiet() as folder:
        config = TrainingArguments(folder, **arguments(work, task.WARM_UP), label_names=["labels"])
        trainer = Trainer(adapted(work, **variant), config, train_dataset=task.rows(work, budget, rule))
        tests = task.batch(task.held_out(rule))
        watch = Watch(tests.inputs, partial(task.exact_matches, labels=tests.labels), task.EVERY)
        return curves(trainer, work, watch)
