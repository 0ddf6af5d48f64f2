"""Trainer multiplies the loss and the gradient of many models by the number of accumulated micro-batches.

Trainer leaves the division to every model whose `forward` has `**kwargs`, but classifiers and T5 do not divide.
"""

import logging
import sys
import tempfile

import torch
import transformers as hf

logging.disable()
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "num_labels": 3}
SIZES |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
T5 |= {"dropout_rate": 0.0, "decoder_start_token_id": 0}
MODELS = [  # with the number of classes and the shape of the labels: one a row or one a token
    ("LlamaForCausalLM", hf.LlamaConfig, SIZES, 64, (8, 6)),  # the control
    ("BertForSequenceClassification", hf.BertConfig, SIZES, 3, (8,)),
    ("T5ForConditionalGeneration", hf.T5Config, T5, 64, (8, 6)),
]


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def by_trainer(model, rows):
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 1}
        options |= {"logging_steps": 1, "learning_rate": 0.0, "max_grad_norm": 0.0}
        options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
        trainer = hf.Trainer(model, hf.TrainingArguments(output_dir=folder, **options), train_dataset=rows)
        trainer.remove_callback(hf.PrinterCallback)
        trainer.create_optimizer().register_step_pre_hook(lambda *_: seen.append(gradient(model)))
        trainer.train()
    return seen[0], trainer.state.log_history[0]["loss"]


wrong = False
for name, config, sizes, classes, shape in MODELS:
    torch.manual_seed(0)
    model = getattr(hf, name)(config(**sizes)).train()
    batch = {"input_ids": torch.randint(5, 64, (8, 6)), "labels": torch.randint(classes, shape)}
    rows = [{key: value[i] for key, value in batch.items()} for i in range(8)]
    loss = model(**batch).loss
    loss.backward()
    expected = gradient(model)
    print(f"expected loss {loss:.4f}, gradient of norm {expected.norm():.4f} ({name} without Trainer)")
    model.zero_grad()
    found, logged = by_trainer(model, rows)
    off = ((found - expected).norm() / expected.norm()).item()
    print(f"found    loss {logged:.4f}, gradient of norm {found.norm():.4f}, off by {off:.1e} (Trainer, 4 × 2 rows)")
    assert off < 1e-3 or name != MODELS[0][0], "the control, a causal LM, is off as well"
    wrong |= off > 1e-3
print("still there" if wrong else "gone")
sys.exit(wrong)
