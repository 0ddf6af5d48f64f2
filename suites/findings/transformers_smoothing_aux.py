"""Label smoothing drops the auxiliary loss of mixture-of-experts models.

A user trains a MoE model with router losses and sets label_smoothing_factor. Trainer then keeps the labels from the
model, which adds the auxiliary loss only where it has labels, and makes a loss of its own from the logits alone.
"""

import logging
import sys
import tempfile
import warnings

import torch
import torch.nn.functional as F
from transformers import PrinterCallback, Qwen3MoeConfig, Qwen3MoeForCausalLM, Trainer, TrainingArguments

logging.disable()
warnings.simplefilter("ignore")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
ROWS = [{"input_ids": list(range(8)), "labels": list(range(8))}] * 4


def moe():
    torch.manual_seed(0)
    config = Qwen3MoeConfig(**SIZES, **HEADS, **EXPERTS, output_router_logits=True, router_aux_loss_coef=1.0)
    return Qwen3MoeForCausalLM(config)


def first_loss(smoothing):
    with tempfile.TemporaryDirectory() as folder:
        options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 1}
        options |= {"logging_steps": 1, "per_device_train_batch_size": 4, "label_smoothing_factor": smoothing}
        trainer = Trainer(moe(), TrainingArguments(output_dir=folder, **options), train_dataset=ROWS)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.state.log_history[0]["loss"]


@torch.no_grad()
def by_hand(smoothing):
    batch = torch.tensor([row["input_ids"] for row in ROWS])
    outputs = moe()(input_ids=batch)
    tokens = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), label_smoothing=smoothing)
    return tokens.item(), outputs.aux_loss.item()


if __name__ == "__main__":
    (tokens, aux), control = by_hand(0.0), first_loss(0.0)
    if abs(control - tokens - aux) > 1e-3 * control:
        raise RuntimeError(f"without smoothing the loss is {control:.4f} instead of {tokens + aux:.4f}")
    (tokens, aux), found = by_hand(0.1), first_loss(0.1)
    print(f"expected loss {tokens + aux:.4f} with smoothing 0.1: tokens {tokens:.4f}, experts {aux:.4f}")
    print(f"found    loss {found:.4f}, with {(found - tokens) / aux:.2f} × the experts' part (smoothing 0: 1.00)")
    wrong = abs(found - tokens - aux) > 1e-3 * found
    print("still there" if wrong else "gone")
    sys.exit(wrong)
