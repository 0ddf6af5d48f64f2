"""SFTTrainer with packing keeps the start of a long text where truncation_mode="keep_end" asks for its end.

The same trainer without packing is the control.
"""

import logging
import os
import sys
import tempfile
import warnings

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

logging.disable()
warnings.simplefilter("ignore")
TEXT = [3, 4, 5, 6, 7, 8]  # the last two are the completion
MASK = [0, 0, 0, 0, 1, 1]


def kept(packing):
    config = Qwen3Config(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    words = WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="<eos>", pad_token="<pad>")
    with tempfile.TemporaryDirectory() as folder:
        options = {"max_length": 3, "truncation_mode": "keep_end", "packing": packing, "completion_only_loss": True}
        trainer = SFTTrainer(
            Qwen3ForCausalLM(config),
            SFTConfig(folder, bf16=False, use_cpu=not torch.cuda.is_available(), report_to="none", **options),
            train_dataset=Dataset.from_dict({"input_ids": [TEXT], "completion_mask": [MASK]}),
            processing_class=tokenizer,
        )
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


if __name__ == "__main__":
    expected, control, found = [([6, 7, 8], [-100, 7, 8])], kept(packing=False), kept(packing=True)
    print(f"expected tokens and labels {expected} (without packing: {control})")
    print(f"found    tokens and labels {found} with packing")
    if control != expected:
        raise RuntimeError("the control, no packing, is wrong too")
    wrong = found != expected
    print("still there" if wrong else "gone")
    sys.exit(wrong)
