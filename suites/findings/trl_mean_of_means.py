"""TRL: DPO with its SFT term, CPO and ORPO weigh tokens by micro-batch: accumulation changes the gradient.

A user trains eight pairs as one micro-batch of 8, or as four of 2 with `gradient_accumulation_steps=4`. The latter's
log-likelihood term is a mean of four means, in which a token beside short completions weighs more.
"""

import copy
import logging
import sys
import tempfile

import datasets
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen3Config, Qwen3ForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

logging.disable()
TEXT = "bcdefghijklmnopqrstuvwxyz" * 2
PAIRS = datasets.Dataset.from_dict({
    "prompt": [TEXT[i : i + n] for i, n in enumerate([2, 1, 4, 3, 1, 6, 2, 3])],
    "chosen": [TEXT[3 * i : 3 * i + n] for i, n in enumerate([1, 2, 9, 7, 2, 12, 5, 4])],
    "rejected": [TEXT[25 - 2 * i :][:n] for i, n in enumerate([6, 2, 8, 1, 9, 3, 4, 7])],
})  # fmt: skip
CASES = {
    "control": (DPOTrainer, DPOConfig, {"loss_type": ["sigmoid"]}),  # a mean over pairs, not over tokens
    "DPO": (DPOTrainer, DPOConfig, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}),
    "ORPO": (ORPOTrainer, ORPOConfig, {}),
}


def gradient(trainer_class, config_class, options, rows):  # what SGD with learning rate 1 takes away
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate("*abcdefghijklmnopqrstuvwxyz")}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="*", eos_token="a")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=27, **sizes, num_hidden_layers=2, initializer_range=0.2))
    others = {"ref_model": copy.deepcopy(model)} if trainer_class is DPOTrainer else {}
    before = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(folder, use_cpu=True, bf16=False, max_steps=1, save_strategy="no", report_to="none",
                              disable_tqdm=True, optim="sgd", learning_rate=1.0, max_grad_norm=0.0, **options,
                              per_device_train_batch_size=rows, gradient_accumulation_steps=8 // rows)  # fmt: skip
        trainer = trainer_class(model, args=config, train_dataset=PAIRS, processing_class=tokenizer, **others)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return before - torch.cat([weight.detach().flatten() for weight in model.parameters()])


off = {}
for name, case in CASES.items():
    expected, found = gradient(*case, rows=8), gradient(*case, rows=2)
    off[name] = ((found - expected).norm() / expected.norm()).item()
    print(f"expected gradient of norm {expected.norm():.4f}  ({name}: one micro-batch of 8)")
    print(f"found    gradient of norm {found.norm():.4f}  (four of 2), off by {off[name]:.1e} of it")
assert off["control"] < 1e-3, "the control, a loss without a mean over tokens, is off as well"
wrong = max(off.values()) > 1e-2
print("still there" if wrong else "gone")
sys.exit(wrong)
