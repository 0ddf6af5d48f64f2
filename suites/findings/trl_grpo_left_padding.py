"""TRL: GRPO's gradient is wrong for prompts of unequal length on models with absolute positions (GPT-2, GPT-Neo, …).

The forward pass for the log-probabilities has no `position_ids`: left padding moves those of a shorter prompt's tokens.
"""

import logging
import sys
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

logging.disable()
CORE = Tokenizer(models.BPE({letter: i for i, letter in enumerate("*abcdefghijklmnopqrstuvwxyz")}, []))
REWARDS = torch.tensor([[0.0, 1.0, 4.0, 4.0], [1.0, 0.0, 1.0, 4.0]])  # of two groups of 4 completions


def make_model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 27, "n_embd": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
    return GPT2LMHeadModel(GPT2Config(**sizes, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0))


def gradients(prompts):  # the textbook's, every row alone, and GRPOTrainer's: what SGD with learning rate 1 takes away
    model, seen = make_model(), []

    def reward(prompts, completion_ids, **_):
        seen[:] = zip([CORE.encode(prompt).ids for prompt in prompts], completion_ids, strict=True)
        return REWARDS.flatten().tolist()

    before = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(folder, use_cpu=True, bf16=False, max_steps=1, save_strategy="no", report_to="none",
                            optim="sgd", learning_rate=1.0, max_grad_norm=0.0, num_generations=4, disable_tqdm=True,
                            max_completion_length=8, loss_type="grpo")  # fmt: skip
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=CORE, pad_token="*", eos_token="a")
        data = Dataset.from_dict({"prompt": prompts})
        trainer = GRPOTrainer(model, reward, args=config, train_dataset=data, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    found = before - torch.cat([weight.detach().flatten() for weight in model.parameters()])
    model, advantages = make_model(), (REWARDS - REWARDS.mean(1, keepdim=True)) / (REWARDS.std(1, keepdim=True) + 1e-4)
    for (prompt, completion), advantage in zip(seen, advantages.flatten(), strict=True):
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        (advantage / 8 * torch.nn.functional.cross_entropy(logits, torch.tensor(completion))).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()]), found


for prompts in (["bcd", "efg"], ["b", "efg"]):  # the first, of equal length, is the control
    expected, found = gradients(prompts)
    apart = ((found - expected).norm() / expected.norm()).item()
    print(f"expected gradient of norm {expected.norm():.4f}  (prompts {prompts}, each alone, not padded)")
    print(f"found    gradient of norm {found.norm():.4f}  (GRPOTrainer), off by {apart:.1e} of it")
    assert apart < 1e-3 or prompts[0] == "b", "the control, prompts of equal length, is off as well"
wrong = apart > 1e-2
print("still there" if wrong else "gone")
sys.exit(wrong)
