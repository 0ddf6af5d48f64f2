"""TRL: SFT with label smoothing trains a mixture of experts without its load balancing loss, and logs it all the same.

With `label_smoothing_factor` above 0, `SFTTrainer.compute_loss` takes another branch, which does not add
`router_aux_loss_coef` times the auxiliary loss. The log shows `aux_loss` all the same.
"""

import logging
import sys
import tempfile

import datasets
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl import SFTConfig, SFTTrainer

logging.disable()
ROWS = torch.tensor([[5, 6, 7, 8, 9, 1], [10, 11, 12, 13, 14, 1]])


def make_model():
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_experts=4, head_dim=16,
        num_experts_per_tok=2, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
    ))  # fmt: skip


def textbook(smoothing):
    """Smoothed cross-entropy + experts × Σ (share of the choices × mean probability)."""
    output = make_model()(input_ids=ROWS, output_router_logits=True)
    logits, labels = output.logits[:, :-1].flatten(0, 1), ROWS[:, 1:].flatten()
    cross_entropy = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    probabilities = torch.cat(list(output.router_logits)).softmax(-1)  # [n, 4]
    chosen = torch.nn.functional.one_hot(probabilities.topk(2).indices, 4).sum(1)  # [n, 4]
    return (cross_entropy + 4 * (chosen.float().mean(0) * probabilities.mean(0)).sum()).item()


def first_losses(smoothing):
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    data = datasets.Dataset.from_dict({"input_ids": ROWS.tolist()})
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(folder, use_cpu=True, bf16=False, max_steps=1, logging_steps=1, save_strategy="no",
                           report_to="none", disable_tqdm=True, router_aux_loss_coef=1.0,
                           label_smoothing_factor=smoothing)  # fmt: skip
        trainer = SFTTrainer(make_model(), config, train_dataset=data, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["aux_loss"]


for smoothing in (0.0, 0.1):  # the first is the control
    expected, (found, logged) = textbook(smoothing), first_losses(smoothing)
    wrong = abs(found / expected - 1) > 1e-3
    print(f"expected loss {expected:.4f}  (label smoothing {smoothing}, router_aux_loss_coef 1)")
    print(f"found    loss {found:.4f}  (aux_loss in the log: {logged:.4f})")
    assert not wrong or smoothing, "the control is off as well"
print("still there" if wrong else "gone")
sys.exit(wrong)
