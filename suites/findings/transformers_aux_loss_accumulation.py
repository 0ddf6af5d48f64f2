"""Gradient accumulation multiplies the auxiliary loss of mixture-of-experts models.

A user trains a MoE model with router losses and accumulates over 4 micro-batches. The model divides its token loss by
the tokens of all micro-batches and adds the auxiliary loss undivided; Trainer adds up the 4 and divides no more.
"""

import logging
import sys
import tempfile
import warnings

import torch
from transformers import PrinterCallback, Qwen3MoeConfig, Qwen3MoeForCausalLM, Trainer, TrainingArguments

logging.disable()
warnings.simplefilter("ignore")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
ROWS = [{"input_ids": list(range(8)), "labels": list(range(8))}] * 8  # equal rows: any cut into micro-batches is fair


def moe():
    torch.manual_seed(0)
    config = Qwen3MoeConfig(**SIZES, **HEADS, **EXPERTS, output_router_logits=True, router_aux_loss_coef=1.0)
    return Qwen3MoeForCausalLM(config)


def first_loss(rows, accumulation):
    with tempfile.TemporaryDirectory() as folder:
        options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        options |= {"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": rows}
        options |= {"gradient_accumulation_steps": accumulation}
        trainer = Trainer(moe(), TrainingArguments(output_dir=folder, **options), train_dataset=ROWS)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.state.log_history[0]["loss"]


def main():
    batch = torch.tensor([row["input_ids"] for row in ROWS])
    outputs = moe()(input_ids=batch, labels=batch)
    expected, aux = outputs.loss.item(), outputs.aux_loss.item()
    control, found = first_loss(8, 1), first_loss(2, 4)
    print(f"expected loss {expected:.4f}, with 1.00 × the auxiliary loss (one batch of 8 rows: {control:.4f})")
    times = (found - expected + aux) / aux
    print(f"found    loss {found:.4f}, with {times:.2f} × the auxiliary loss (4 micro-batches of 2 rows)")
    if abs(control - expected) > 1e-3 * expected:
        raise RuntimeError("the control, one batch, is wrong too")
    return abs(found - expected) > 1e-3 * expected


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
