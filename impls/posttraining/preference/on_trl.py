"""TRL's DPOTrainer. The trainer, its loss and its fused head are TRL's own; only the two models below the head are
stand-ins, which return the given hidden states.

TRL never requests logits from a model: its fused head projects the last hidden state tile by tile and reduces each tile
to log-probabilities.
"""

import tempfile
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from datasets import IterableDataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer

from harness.spec import Function, Topology, Unsupported, Workload


class Given(nn.Module):
    """The backbone: for any arguments its last hidden state is ``hidden``."""

    hidden: Tensor

    def forward(self, **inputs: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.hidden)


class Head(nn.Module):
    """The part of an ``nn.Linear`` that TRL reads: the weight, here the given one."""

    weight: Tensor
    bias = None


class StandIn(PreTrainedModel):
    config_class = PretrainedConfig
    base_model_prefix = "given"

    def __init__(self, vocab_size: int) -> None:
        super().__init__(PretrainedConfig(vocab_size=vocab_size))
        self.given, self.lm_head = Given(), Head()
        self.anchor = nn.Parameter(torch.zeros(()))  # a trainer requires a trainable parameter
        self.generation_config = GenerationConfig()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, **inputs: Any) -> None:
        raise RuntimeError("DPOTrainer did not put its fused head in this method's place: another version of TRL?")


def build(workload: Workload, topology: Topology, beta: float) -> Function:
    if workload.dtype == "fp64":
        raise Unsupported("TRL's fused head computes in float32; float64 would be rounded")
    policy, reference = StandIn(workload.model.vocab_size), StandIn(workload.model.vocab_size)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<pad>",
    )
    # A trainer requires a data set, though it never trains on it.
    one_pair = IterableDataset.from_generator(lambda: iter([{"prompt": "a", "chosen": "a", "rejected": "a"}]))
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            beta=beta,
            loss_type=["sigmoid"],
            max_steps=1,
            bf16=False,  # no autocast: the hidden states already have the workload's dtype
            use_cpu=True,  # the device of the trainer's models; here they follow the inputs instead
            report_to="none",
            disable_tqdm=True,
        )
        trainer = DPOTrainer(policy, reference, config, train_dataset=one_pair, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)

    def loss(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, model in (("policy", policy), ("reference", reference)):
            model.given.hidden, model.lm_head.weight = inputs[f"{name}_hidden"], inputs[f"{name}_head"]
        names = ("input_ids", "attention_mask", "completion_mask")
        value = trainer.compute_loss(policy, {name: inputs[name] for name in names})
        for model in (policy, reference):
            model.given.hidden = model.lm_head.weight = None
        trainer.log({})
        logged = trainer.state.log_history.pop()
        return {
            "loss": value,
            "chosen_rewards": value.new_tensor(logged["rewards/chosen"]),
            "rejected_rewards": value.new_tensor(logged["rewards/rejected"]),
        }

    return loss
