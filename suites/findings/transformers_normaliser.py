"""Trainer divides the token loss of GPT-2, OpenAI-GPT and CTRL by too many tokens.

A user trains one of them with Trainer. A row of n tokens has n - 1 targets. Trainer counts these for models whose
loss_type maps to ForCausalLMLoss; these three have no loss_type, use that loss all the same, and are divided by n.
"""

import logging
import sys
import tempfile
import warnings

import torch
import transformers as hf

logging.disable()
warnings.simplefilter("ignore")
SIZES = {"n_embd": 32, "n_layer": 1, "n_head": 2}  # GPT-2's names of them, and Llama's
LLAMA = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
ROWS = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}] * 4


def losses(model_name, config_name, sizes):
    """The loss by the model itself, and the one with which Trainer makes its first step."""
    torch.manual_seed(0)
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = getattr(hf, model_name)(getattr(hf, config_name)(vocab_size=64, **sizes, **dropout))
    batch = torch.tensor([row["input_ids"] for row in ROWS])
    own = model(input_ids=batch, labels=batch).loss.item()
    with tempfile.TemporaryDirectory() as folder:
        options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        options |= {"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": len(ROWS)}
        trainer = hf.Trainer(model, hf.TrainingArguments(output_dir=folder, **options), train_dataset=ROWS)
        trainer.remove_callback(hf.PrinterCallback)
        trainer.train()
    return own, trainer.state.log_history[0]["loss"]


def main():
    own, control = losses("LlamaForCausalLM", "LlamaConfig", LLAMA)
    wrong = False
    for model in ("GPT2", "OpenAIGPT", "CTRL"):
        expected, found = losses(f"{model}LMHeadModel", f"{model}Config", SIZES)
        print(f"expected {expected:.4f} of {model} (LlamaForCausalLM: {own:.4f})")
        print(f"found    {found:.4f}, × {found / expected:.3f} (LlamaForCausalLM: {control:.4f})")
        wrong |= abs(found - expected) > 1e-3 * expected
    if abs(control - own) > 1e-3 * own:
        raise RuntimeError("the control, LlamaForCausalLM, is wrong too")
    return wrong


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
