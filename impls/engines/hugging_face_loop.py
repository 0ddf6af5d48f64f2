"""A whole training by Transformers' Trainer, or one that derives from it: its own loop, optimizer, schedule, clipping
and accumulation. A callback watches the losses that it logs, and scores the model between its steps."""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback

from harness.spec import Curves, Workload
from impls.common.mesh import device, moved
from impls.common.weights import TORCH_DTYPES
from impls.engines.hugging_face import QUIET


def arguments(workload: Workload, warm_up: int) -> dict[str, Any]:
    """The arguments of a Trainer with a constant learning rate, that takes the data in their order, once."""
    micro_batch = workload.batch_size // workload.micro_batches
    optimizer = {"optim": "sgd"} if workload.optimizer == "sgd" else {"optim": "adamw_torch"}
    return {
        **QUIET,
        **optimizer,
        "use_cpu": device().type == "cpu",
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": workload.micro_batches,
        "learning_rate": workload.lr,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": warm_up,
        "weight_decay": workload.weight_decay,
        "adam_beta1": workload.betas[0],
        "adam_beta2": workload.betas[1],
        "adam_epsilon": workload.eps,
        "max_grad_norm": workload.max_grad_norm,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "dataloader_pin_memory": False,
    }


@contextmanager
def quiet() -> Iterator[str]:
    """A folder for a Trainer, which writes nothing into it."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of arguments that it will not have in its next version
        yield folder


def loaded(workload: Workload, **fields: Any) -> nn.Module:
    """The model of the workload's folder."""
    found: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
        workload.weights, dtype=TORCH_DTYPES[workload.dtype], attn_implementation="sdpa", device_map=device(), **fields
    )
    return found


class Watch(TrainerCallback):
    """``score``: of logits [b, s, V] that ``tokens`` [b, s] give."""

    def __init__(self, tokens: Tensor, score: Callable[[Tensor], float], every: int) -> None:
        self.tokens, self.score, self.every = tokens, score, every
        self.losses: list[float] = []
        self.scores: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **more: Any) -> None:
        if "loss" in logs:  # not in its summary of the run
            self.losses.append(logs["loss"])

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **more: Any) -> None:
        if state.global_step % self.every == 0:
            with torch.no_grad():  # the model has no dropout, and stays in training mode
                self.scores.append(self.score(model(input_ids=moved(self.tokens)).logits))


def curves(trainer: Trainer, workload: Workload, watch: Watch) -> Curves:
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch)
    start = time.monotonic()
    trainer.train()
    every = watch.every * workload.batch_size
    samples = [every * (n + 1) for n in range(len(watch.scores))]
    return Curves(samples, watch.scores, time.monotonic() - start, watch.losses)
