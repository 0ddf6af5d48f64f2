"""Trainer's eval_loss depends on the evaluation batch size.

A user evaluates on texts of unequal length. Trainer takes each batch's mean over its tokens and then the mean over the
texts, so that a token of a batch with few tokens weighs more; in training it divides by the tokens of all batches.
"""

import logging
import sys
import tempfile
import warnings

import torch
from transformers import PrinterCallback, Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

logging.disable()
warnings.simplefilter("ignore")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
LENGTHS = [3, 17, 5, 9, 2, 21, 7, 12]


def collate(rows):
    batch = torch.nn.utils.rnn.pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=-100)
    return {"input_ids": batch.clamp(min=0), "labels": batch}  # padding comes last, so causal attention never sees it


def main():
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS, initializer_range=0.3)).eval()
    texts = [{"input_ids": torch.randint(0, 64, (length,))} for length in LENGTHS]
    with torch.no_grad():
        means = [model(input_ids=t["input_ids"][None], labels=t["input_ids"][None]).loss.item() for t in texts]
    expected = sum(mean * (n - 1) for mean, n in zip(means, LENGTHS, strict=True)) / sum(n - 1 for n in LENGTHS)
    found = {}
    for size in (1, 2, len(texts)):
        with tempfile.TemporaryDirectory() as folder:
            options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_eval_batch_size": size}
            arguments = TrainingArguments(output_dir=folder, **options)
            trainer = Trainer(model, arguments, eval_dataset=texts, data_collator=collate)
            trainer.remove_callback(PrinterCallback)
            found[size] = trainer.evaluate()["eval_loss"]
    control = found.pop(len(texts))
    print(f"expected eval_loss {expected:.4f}, the mean over the tokens (one batch of all texts: {control:.4f})")
    print(f"found    eval_loss {found[1]:.4f} with batch size 1, {found[2]:.4f} with 2")
    if abs(control - expected) > 1e-3 * expected:
        raise RuntimeError("the control, one batch, is wrong too")
    return any(abs(loss - expected) > 1e-3 * expected for loss in found.values())


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
