"""Trainer multiplies the loss and the gradient of many models by the number of accumulated micro-batches.

A user trains a classifier, or T5, with `gradient_accumulation_steps=4`. Trainer divides the loss by 4 unless the model
divides it by `num_items_in_batch`, and takes every model whose `forward` has `**kwargs` for one that does. These models
have it and do not divide.
"""

import logging
import sys
import tempfile
import warnings

import torch
import transformers as hf

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "num_labels": 3}
SIZES |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
T5 |= {"dropout_rate": 0.0, "decoder_start_token_id": 0}
MODELS = [  # with the number of classes and the shape of the labels: one a row or one a token
    ("LlamaForCausalLM", hf.LlamaConfig, SIZES, 64, (8, 6)),  # the control
    ("BertForSequenceClassification", hf.BertConfig, SIZES, 3, (8,)),
    ("Qwen3ForTokenClassification", hf.Qwen3Config, SIZES, 3, (8, 6)),
    ("T5ForConditionalGeneration", hf.T5Config, T5, 64, (8, 6)),
]


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def by_trainer(model, rows, size):
    """The gradient with which Trainer makes its first step, and the loss that it logs."""
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 1}
        options |= {"logging_steps": 1, "learning_rate": 0.0, "max_grad_norm": 0.0}
        options |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": len(rows) // size}
        trainer = hf.Trainer(model, hf.TrainingArguments(output_dir=folder, **options), train_dataset=rows)
        trainer.remove_callback(hf.PrinterCallback)
        trainer.create_optimizer().register_step_pre_hook(lambda *_: seen.append(gradient(model)))
        trainer.train()
    return seen[0], trainer.state.log_history[0]["loss"]


def main():
    logging.disable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # the matrices are tiny
    off = {}
    for name, config, sizes, classes, shape in MODELS:
        torch.manual_seed(0)
        model = getattr(hf, name)(config(**sizes)).train()
        batch = {"input_ids": torch.randint(5, 64, (8, 6)), "labels": torch.randint(classes, shape)}
        rows = [{key: value[i] for key, value in batch.items()} for i in range(8)]
        loss = model(**batch).loss
        loss.backward()
        expected = gradient(model)
        print(f"expected loss {loss:.4f}, gradient of norm {expected.norm():.4f} ({name} without Trainer)")
        for size in (8, 2):
            model.zero_grad()
            found, logged = by_trainer(model, rows, size)
            off[name, size] = ((found - expected).norm() / expected.norm()).item()
            print(
                f"found    loss {logged:.4f}, gradient of norm {found.norm():.4f}, off by {off[name, size]:.1e}", end=""
            )
            print(f" (Trainer, {8 // size} × {size} rows: loss × {logged / loss:.3f})")
    wrong = [name for (name, size), apart in off.items() if size == 2 and apart > 1e-3]
    if MODELS[0][0] in wrong or any(apart > 1e-3 for (_, size), apart in off.items() if size == 8):
        raise RuntimeError("a control, the whole batch at once or the causal LM, is off as well")
    return bool(wrong)


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
