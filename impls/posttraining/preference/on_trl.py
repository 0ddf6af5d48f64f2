"""TRL's DPOTrainer. The trainer and its loss are TRL's own; only the two models are stand-ins, which hand out the given
logits.

TRL never asks a model for logits: its fused head projects the last hidden state tile by tile and folds each tile into
log-probabilities. So the stand-in's hidden state *is* the logits and its head the identity, V × V: exact, since each
product adds one number to zeros (with TF32 off), and part of the time and memory measured.
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

LARGEST_VOCABULARY = 32_768  # an identity of 4 GiB in fp32


class Given(nn.Module):
    """The backbone: whatever it is called with, its last hidden state is ``logits``."""

    logits: Tensor

    def forward(self, **inputs: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.logits)


class StandIn(PreTrainedModel):
    config_class = PretrainedConfig
    base_model_prefix = "given"

    def __init__(self, vocab_size: int, dtype: torch.dtype) -> None:
        super().__init__(PretrainedConfig(vocab_size=vocab_size))
        self.given = Given()
        self.lm_head = nn.Linear(vocab_size, vocab_size, bias=False, dtype=dtype).requires_grad_(False)
        nn.init.eye_(self.lm_head.weight)
        self.generation_config = GenerationConfig()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, **inputs: Any) -> None:
        raise RuntimeError("DPOTrainer did not put its fused head in this method's place: another version of TRL?")


def build(workload: Workload, topology: Topology, beta: float) -> Function:
    if workload.dtype == "fp64":
        raise Unsupported("TRL's fused head computes in float32; float64 would be rounded")
    vocab = workload.model.vocab_size
    if vocab > LARGEST_VOCABULARY:
        raise Unsupported(f"the stand-in's identity head holds vocab_size² elements: {vocab} > {LARGEST_VOCABULARY}")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[workload.dtype]
    policy, reference = StandIn(vocab, dtype), StandIn(vocab, dtype)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<pad>",
    )
    # A trainer wants a data set, though it never trains on it.
    one_pair = IterableDataset.from_generator(lambda: iter([{"prompt": "a", "chosen": "a", "rejected": "a"}]))
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            beta=beta,
            loss_type=["sigmoid"],
            max_steps=1,
            bf16=False,  # no autocast: the logits already have the workload's dtype
            use_cpu=True,  # where the trainer would put its models; they follow the inputs instead
            report_to="none",
            disable_tqdm=True,
        )
        trainer = DPOTrainer(policy, reference, config, train_dataset=one_pair, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)

    def loss(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for model, logits in ((policy, inputs["policy_logits"]), (reference, inputs["reference_logits"])):
            model.to(logits.device)
            model.given.logits = logits
        names = ("input_ids", "attention_mask", "completion_mask")
        value = trainer.compute_loss(policy, {name: inputs[name] for name in names})
        policy.given.logits = reference.given.logits = None
        trainer.log({})
        logged = trainer.state.log_history.pop()
        return {
            "loss": value,
            "chosen_rewards": value.new_tensor(logged["rewards/chosen"]),
            "rejected_rewards": value.new_tensor(logged["rewards/rejected"]),
        }

    return loss
