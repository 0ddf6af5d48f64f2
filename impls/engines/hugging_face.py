"""Transformers' Qwen3, Qwen2 or Llama with the common start, and steps of its Trainer or of one derived from it."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Trainer

from harness.spec import Unsupported, Workload
from harness.spec.config import described
from impls.common.experts import without_experts
from impls.common.mesh import device, moved
from impls.common.optimizer import MasterWeights, clip
from impls.common.weights import TORCH_DTYPES, fill

# Arguments of a Trainer that writes and reports nothing; the harness steps the optimizer.
QUIET = {
    "bf16": False,  # no autocast: the weights have the workload's dtype
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_strategy": "no",
    "ddp_broadcast_buffers": False,  # the frequencies of RoPE, which are the same on all ranks
}


def decoder(workload: Workload, attention: str, **fields: Any) -> PreTrainedModel:
    """Transformers' model of the family that has the workload's features; ``fields``: more of its config's."""
    without_experts(workload, "Transformers' model here has")
    try:
        given = described(workload.model)
    except ValueError as error:
        raise Unsupported(f"no model of Transformers: {error}") from error
    config = AutoConfig.for_model(**given, attn_implementation=attention, **fields)
    # As from_pretrained does, and unlike .to(dtype), this leaves RoPE's frequencies in float32.
    model = AutoModelForCausalLM.from_config(config, dtype=TORCH_DTYPES[workload.dtype]).to(device())
    fill(model, workload)
    return model


def tokenizer(vocabulary: Mapping[str, int], **options: Any) -> PreTrainedTokenizerFast:
    """Words are what spaces separate; ``options`` name the special tokens and the template."""
    whole = Tokenizer(WordLevel(dict(vocabulary), unk_token=options["eos_token"]))
    whole.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=whole, **options)


class Stepped:
    """Forward and backward by ``trainer.training_step``, as its own loop calls it (``_run_epoch``); float32 masters,
    which it does not have, are stepped outside of it."""

    def __init__(self, workload: Workload, trainer: Trainer) -> None:
        self.workload, self.trainer, self.inner = workload, trainer, trainer.model
        alone = dist.get_world_size() == 1  # a user's single process has no group, and so no DistributedDataParallel
        self.model: nn.Module = trainer.model if alone else trainer.accelerator.prepare_model(trainer.model)
        if not alone and not isinstance(self.model, DistributedDataParallel):
            raise RuntimeError(f"Accelerate made a {type(self.model).__name__}, not a DistributedDataParallel")
        self.names = [name for name, _ in self.inner.named_parameters()]
        self.optimizer = MasterWeights(self.inner.parameters(), workload)

    def step(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """``rows`` of this rank: k micro-batches of them, or fewer if any rank has fewer rows."""
        # As many on all ranks, which gather figures in each forward pass.
        fewest = moved(torch.tensor(min(self.workload.micro_batches, len(rows))))
        dist.all_reduce(fewest, dist.ReduceOp.MIN)
        trainer, k = self.trainer, int(fewest)
        ends = [len(rows) * (i + 1) // k for i in range(k)]
        samples = [trainer.data_collator(list(rows[a:b])) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        number = trainer._get_num_items_in_batch(samples, trainer.args.device)
        trainer.current_gradient_accumulation_steps = len(samples)
        total = torch.zeros((), dtype=torch.float64, device=device())
        for index, sample in enumerate(samples):
            last = index == len(samples) - 1
            trainer.accelerator.gradient_state._set_sync_gradients(last)
            with contextlib.nullcontext() if last else trainer.accelerator.no_sync(self.model):
                total += trainer.training_step(self.model, sample, number)
        return total

    def update(self) -> None:
        clip([p.grad for p in self.inner.parameters() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return {n: p.grad.cpu() for n, p in self.inner.named_parameters() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: m.detach().cpu() for n, m in zip(self.names, self.optimizer.masters, strict=True)}
