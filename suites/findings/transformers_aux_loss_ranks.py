"""Training on N ranks multiplies the auxiliary loss of mixture-of-experts models by N.

A user trains a MoE model with router losses on 2 ranks. Trainer multiplies the loss by the number of ranks, since its
tokens are divided by those of all ranks and DDP takes a mean; the auxiliary loss in it is a mean already.
"""

import logging
import os
import sys
import tempfile
import warnings

import torch
import torch.distributed as dist
from transformers import PrinterCallback, Qwen3MoeConfig, Qwen3MoeForCausalLM, Trainer, TrainingArguments

logging.disable()
warnings.simplefilter("ignore")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
ROWS = [{"input_ids": list(range(8)), "labels": list(range(8))}] * 8  # equal rows: each rank has the same work


def moe(coefficient):
    torch.manual_seed(0)
    config = Qwen3MoeConfig(**SIZES, **HEADS, **EXPERTS, output_router_logits=True, router_aux_loss_coef=coefficient)
    return Qwen3MoeForCausalLM(config)


def rank_main(rank, store, losses):
    dist.init_process_group("gloo", init_method=f"file://{store}/ranks", rank=rank, world_size=2)
    # What torchrun sets: Accelerate takes them from here, and the group that is there already.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 1}
    options |= {"logging_steps": 1, "per_device_train_batch_size": 4, "ddp_find_unused_parameters": False}
    for which, coefficient in enumerate((0.0, 1.0)):
        trainer = Trainer(moe(coefficient), TrainingArguments(output_dir=store, **options), train_dataset=ROWS)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        losses[which] = trainer.state.log_history[0]["loss"]
    dist.destroy_process_group()


if __name__ == "__main__":
    losses = torch.zeros(2).share_memory_()
    with tempfile.TemporaryDirectory() as store:
        torch.multiprocessing.start_processes(rank_main, (store, losses), nprocs=2, start_method="fork")
    batch = torch.tensor([row["input_ids"] for row in ROWS])
    outputs = moe(1.0)(input_ids=batch, labels=batch)  # one process
    aux = outputs.aux_loss.item()
    expected, (control, found) = outputs.loss.item(), losses.tolist()
    print(f"expected loss {expected:.4f}, with 1.00 × the auxiliary loss (coefficient 0: {control:.4f})")
    print(f"found    loss {found:.4f}, with {(found - expected + aux) / aux:.2f} × the auxiliary loss on 2 ranks")
    if abs(control - expected + aux) > 1e-3 * expected:
        raise RuntimeError("the control, the loss without auxiliary loss, is wrong too")
    wrong = abs(found - expected) > 1e-3 * expected
    print("still there" if wrong else "gone")
    sys.exit(wrong)
