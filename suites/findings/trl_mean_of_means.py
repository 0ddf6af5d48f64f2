"""TRL: DPO with its SFT term, CPO and ORPO weigh tokens by micro-batch: accumulation changes the gradient.

The same eight pairs in one step, as one micro-batch of 8 or as four of 2 with `gradient_accumulation_steps=4`, must
give the same gradient. Each micro-batch's log-likelihood term is a mean over its own tokens and the trainer averages
these four means, so a token in a micro-batch of short completions weighs more. (SFTTrainer divides by all tokens.)
"""

import logging
import sys
import tempfile
import warnings

import datasets
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen3Config, Qwen3ForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

TEXT = "bcdefghijklmnopqrstuvwxyz" * 2
PAIRS = {
    "prompt": [TEXT[i : i + n] for i, n in enumerate([2, 1, 4, 3, 1, 6, 2, 3])],
    "chosen": [TEXT[3 * i : 3 * i + n] for i, n in enumerate([1, 2, 9, 7, 2, 12, 5, 4])],
    "rejected": [TEXT[25 - 2 * i :][:n] for i, n in enumerate([6, 2, 8, 1, 9, 3, 4, 7])],
}
CASES = {
    "DPO, control": (DPOTrainer, DPOConfig, {"loss_type": ["sigmoid"]}),  # the mean over pairs alone
    "DPO": (DPOTrainer, DPOConfig, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}),
    "CPO, control": (CPOTrainer, CPOConfig, {"cpo_alpha": 0.0}),
    "CPO": (CPOTrainer, CPOConfig, {}),
    "ORPO": (ORPOTrainer, ORPOConfig, {}),
}


def make_model():
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=27, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    ))  # fmt: skip


def gradient(case, rows, accumulation):
    """The gradient of one step over the eight pairs: what SGD with learning rate 1 takes away."""
    trainer_class, config_class, options = case
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate("*abcdefghijklmnopqrstuvwxyz")}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="*", eos_token="a")
    model, reference = make_model(), {"ref_model": make_model()} if trainer_class is DPOTrainer else {}
    before = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            folder, use_cpu=True, bf16=False, max_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
            optim="sgd", learning_rate=1.0, max_grad_norm=0.0, lr_scheduler_type="constant",
            per_device_train_batch_size=rows, gradient_accumulation_steps=accumulation, **options,
        )  # fmt: skip
        data = datasets.Dataset.from_dict(PAIRS)
        trainer = trainer_class(model, args=config, train_dataset=data, processing_class=tokenizer, **reference)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return before - torch.cat([weight.detach().flatten() for weight in model.parameters()])


def main():
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    datasets.disable_progress_bars()
    torch.set_num_threads(1)  # the matrices are tiny
    wrong = False
    for name, case in CASES.items():
        expected, found = gradient(case, 8, 1), gradient(case, 2, 4)
        apart = ((found - expected).norm() / expected.norm()).item()
        print(f"expected gradient of norm {expected.norm():.4f}  ({name}: one micro-batch of 8)")
        print(f"found    gradient of norm {found.norm():.4f}  (four of 2), off by {apart:.1e} of it")
        if name.endswith("control") and apart > 1e-3:
            print("cannot be judged: the control, a loss without a mean over tokens, is off as well")
            return 2
        wrong |= apart > 1e-2
    print("still there" if wrong else "gone")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as error:  # no verdict without both figures
        print(f"cannot be judged: {error!r}")
        sys.exit(2)
