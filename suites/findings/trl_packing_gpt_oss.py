"""TRL: packing and padding-free training let the documents of a row see each other on GPT-OSS.

Both put several documents into one row without an attention mask and mark their beginnings by `position_ids` that
start at 0 again. With eager attention (the default of GPT-OSS without the Hub's kernels) the model has to make the
block mask from them, but GPT-OSS calls `create_causal_mask` without its `position_ids`: the mask is causal alone.
"""

import logging
import sys
import tempfile
import warnings

import datasets
import torch
from tokenizers import Tokenizer, models
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import SFTConfig, SFTTrainer

DOCUMENTS = [[5, 6, 7, 8, 9, 1], [10, 11, 1], [12, 13, 14, 15, 16, 17, 18, 1]]


def make_model():
    torch.manual_seed(0)
    return GptOssForCausalLM(GptOssConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, initializer_range=0.2, pad_token_id=0,
    ))  # fmt: skip


def first_loss(**options):
    """The loss of SFTTrainer's first step."""
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    data = datasets.Dataset.from_dict({"input_ids": DOCUMENTS})
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(folder, use_cpu=True, bf16=False, max_steps=1, logging_steps=1, save_strategy="no",
                           report_to="none", disable_tqdm=True, router_aux_loss_coef=0.0, **options)  # fmt: skip
        trainer = SFTTrainer(make_model(), config, train_dataset=data, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.state.log_history[0]["loss"]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    model = make_model()
    logits = torch.cat([model(input_ids=torch.tensor([document])).logits[0, :-1] for document in DOCUMENTS])
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([t for d in DOCUMENTS for t in d[1:]])).item()
    padded = first_loss(per_device_train_batch_size=3)
    print(f"expected loss {expected:.4f}  (each document alone; a padded batch gives {padded:.4f})")
    assert abs(padded / expected - 1) < 1e-3, "the control, a padded batch, is off as well"
    padding_free = first_loss(per_device_train_batch_size=3, padding_free=True, max_length=None)
    packed = first_loss(per_device_train_batch_size=1, packing=True, max_length=32)
    apart = {"padding-free": abs(padding_free / expected - 1), "packing": abs(packed / expected - 1)}
    print(f"found    loss {padding_free:.4f}  (padding-free), off by {apart['padding-free']:.1e} of it")
    print(f"found    loss {packed:.4f}  (packing), off by {apart['packing']:.1e} of it")
    wrong = max(apart.values()) > 1e-3
    print("still there" if wrong else "gone")
    sys.exit(wrong)
