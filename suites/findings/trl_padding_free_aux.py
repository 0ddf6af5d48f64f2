"""TRL: padding-free SFT of a mixture of experts balances padding tokens as well, once `pad_to_multiple_of` is set.

The row of a padding-free batch has no attention mask. `pad_to_multiple_of` (for tensor cores, fp8 or context parallel
training) appends padding to it, and the load balancing loss, called with `attention_mask=None`, counts every token:
the auxiliary loss and the router's gradient depend on how much padding the row happens to get.
"""

import logging
import sys
import tempfile
import warnings

import datasets
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl import SFTConfig, SFTTrainer

DOCUMENTS = [[5, 6, 7, 8, 1], [9, 10, 1], [11, 12, 13, 14, 15, 1], [16, 1]]


def make_model():
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_experts=4, head_dim=16,
        num_experts_per_tok=2, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
    ))  # fmt: skip


def first_aux_loss(**options):
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    data = datasets.Dataset.from_dict({"input_ids": DOCUMENTS})
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(folder, use_cpu=True, bf16=False, max_steps=1, logging_steps=1, save_strategy="no",
                           report_to="none", disable_tqdm=True, router_aux_loss_coef=1.0, **options)  # fmt: skip
        trainer = SFTTrainer(make_model(), config, train_dataset=data, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.state.log_history[0]["aux_loss"]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    # The textbook: experts × Σ (share of the choices × mean probability), over the 16 tokens and both layers
    model = make_model()
    outputs = [model(input_ids=torch.tensor([document]), output_router_logits=True) for document in DOCUMENTS]
    probabilities = torch.cat([logits for output in outputs for logits in output.router_logits]).softmax(-1)  # [n, 4]
    chosen = torch.nn.functional.one_hot(probabilities.topk(2).indices, 4).sum(1)  # [n, 4]
    expected = (4 * (chosen.float().mean(0) * probabilities.mean(0)).sum()).item()
    control = first_aux_loss(padding_free=True, max_length=None)
    print(f"expected auxiliary loss {expected:.4f}  (by the formula; padding-free {control:.4f})")
    assert abs(control / expected - 1) < 1e-3, "the control, padding-free alone, is off as well"
    found = first_aux_loss(padding_free=True, max_length=None, pad_to_multiple_of=64)
    apart = abs(found / expected - 1)
    print(f"found    auxiliary loss {found:.4f}  (padding-free, pad_to_multiple_of=64), off by {apart:.1e} of it")
    wrong = apart > 1e-3
    print("still there" if wrong else "gone")
    sys.exit(wrong)
