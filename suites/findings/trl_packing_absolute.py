"""TRL: packing and padding-free training let the documents of a row see each other on OPT, BLOOM, MPT, XGLM and Mamba.

Both put several documents into one row, whose beginnings are marked by `position_ids` alone. These models make no block
mask from them (OPT, BLOOM, MPT, XGLM) or do not reset their state (Mamba, Jamba, RWKV): there is no warning.
"""

import logging
import sys
import tempfile

import datasets
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import SFTConfig, SFTTrainer

logging.disable()
DOCUMENTS = [[5, 6, 7, 8, 9, 1], [10, 11, 1], [12, 13, 14, 15, 16, 17, 18, 1]]
MODELS = {
    "llama": {"num_attention_heads": 4, "intermediate_size": 64},  # the control: it makes the block mask
    "mamba": {},
    "opt": {"num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 64, "dropout": 0.0},
}


def make_model(name):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes, **MODELS[name]))
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn_like(weight)  # far enough from a uniform distribution
    return model


def first_loss(name):
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    data = datasets.Dataset.from_dict({"input_ids": DOCUMENTS})
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(folder, use_cpu=True, bf16=False, max_steps=1, logging_steps=1, save_strategy="no",
                           report_to="none", disable_tqdm=True, per_device_train_batch_size=1, packing=True,
                           max_length=32)  # fmt: skip
        trainer = SFTTrainer(make_model(name), config, train_dataset=data, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.state.log_history[0]["loss"]


labels = torch.tensor([token for document in DOCUMENTS for token in document[1:]])
for name in MODELS:
    model = make_model(name)
    logits = torch.cat([model(input_ids=torch.tensor([document])).logits[0, :-1] for document in DOCUMENTS])
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    apart = abs((found := first_loss(name)) / expected - 1)
    print(f"expected loss {expected:.4f}  ({name}, each document alone)")
    print(f"found    loss {found:.4f}  (packing), off by {apart:.1e} of it")
    wrong = apart > 1e-3
    assert not wrong or name != "llama", "the control is off as well"
print("still there" if wrong else "gone")
sys.exit(wrong)
