"""TRL: SFT trains another model where a decoder does more than `lm_head(hidden)` to make its logits.

The fused head of every SFT run multiplies the backbone's hidden states with the output embedding. The prediction head
of ModernBERT's decoder (dense, activation, norm) is left out, and not trained. BERT and RecurrentGemma are hit as well.
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
SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "pad_token_id": 0}
DECODERS = {
    "qwen3": {"num_hidden_layers": 2, "num_key_value_heads": 2},  # the control: its logits are lm_head(hidden)
    "modernbert-decoder": {"num_hidden_layers": 2, "sep_token_id": 1, "cls_token_id": 1},
}
ROWS = [[5, 6, 7, 8, 9, 1], [10, 11, 12, 13, 14, 1]]


def make_model(name):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **SIZES, **DECODERS[name], eos_token_id=1, bos_token_id=1)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)  # far enough from a uniform distribution
    return model


def first_loss(name):
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    data = datasets.Dataset.from_dict({"input_ids": ROWS})
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(folder, use_cpu=True, bf16=False, max_steps=1, logging_steps=1, save_strategy="no",
                           report_to="none", disable_tqdm=True)  # fmt: skip
        trainer = SFTTrainer(make_model(name), config, train_dataset=data, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.state.log_history[0]["loss"]


if __name__ == "__main__":
    rows = torch.tensor(ROWS)
    for name in DECODERS:
        logits, found = make_model(name)(input_ids=rows).logits[:, :-1], first_loss(name)
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
        apart, control = abs(found / expected - 1), name == "qwen3"
        print(f"expected loss {expected:.4f}  ({name}, from the model's logits)")
        print(f"found    loss {found:.4f}  (SFTTrainer), off by {apart:.1e} of it")
        wrong = apart > 1e-3
        assert not wrong or name != "qwen3", "the control is off as well"
    print("still there" if wrong else "gone")
    sys.exit(wrong)
