"""TRL: a run with `sync_ref_model=True` that is resumed has lost its reference model.

With `sync_ref_model` (TR-DPO) the reference follows the policy every `ref_model_sync_steps` steps. No checkpoint holds
it: after `train(resume_from_checkpoint=…)` the policy is the one of the checkpoint, and the reference the one that the
run was started with. The loss of the first resumed step is another one.
"""

import logging
import os
import sys
import tempfile
import warnings

import datasets
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen3Config, Qwen3ForCausalLM
from trl import DPOConfig, DPOTrainer

PAIRS = {"prompt": ["b", "cd"] * 4, "chosen": ["efg", "hi", "j", "klm"] * 2, "rejected": ["jk", "l", "mno", "pq"] * 2}


def make_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=27, **sizes, num_hidden_layers=2, initializer_range=0.2))


def last_loss(folder, sync, checkpoint=None):
    """The loss of step 3, in one run or resumed after step 2."""
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate("*abcdefghijklmnopqrstuvwxyz")}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="*", eos_token="a")
    config = DPOConfig(
        folder, use_cpu=True, bf16=False, max_steps=3, logging_steps=1, save_steps=2, report_to="none",
        disable_tqdm=True, learning_rate=1e-2, per_device_train_batch_size=2, sync_ref_model=sync,
        ref_model_sync_steps=1, ref_model_mixup_alpha=1.0,
    )  # fmt: skip
    data = datasets.Dataset.from_dict(PAIRS)
    trainer = DPOTrainer(make_model(), make_model(), args=config, train_dataset=data, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][2]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    for sync in (False, True):  # the first is the control
        with tempfile.TemporaryDirectory() as folder:
            expected = last_loss(folder, sync)
            found = last_loss(folder, sync, os.path.join(folder, "checkpoint-2"))
        apart = abs(found / expected - 1)
        print(f"expected loss {expected:.4f}  (step 3 of one run, sync_ref_model={sync})")
        print(f"found    loss {found:.4f}  (step 3, resumed after step 2), off by {apart:.1e} of it")
        if apart > 1e-3 and not sync:
            raise RuntimeError("the control, a fixed reference, is off as well")
    wrong = apart > 1e-3
    print("still there" if wrong else "gone")
    sys.exit(wrong)
